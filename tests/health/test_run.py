"""Checks of a run: its data, its disk and its memory, where each may be wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from configs.base import RECIPES
from seresnext_jax.config import CheckpointConfig, Config, DataConfig, ModelConfig
from seresnext_jax.data import files
from seresnext_jax.health.data import (
    PUBLISHED,
    check_dataset,
    check_disk,
    check_reading,
    judge_reading,
    needed_rate,
)
from seresnext_jax.health.memory import (
    abstract_state,
    available_bytes,
    check_memory,
    judge_memory,
    size_in_bytes,
    step_bytes,
)
from seresnext_jax.mesh import make_mesh
from seresnext_jax.model.initial import init_variables
from seresnext_jax.plan import divide_batch
from seresnext_jax.training.state import create_train_state
from seresnext_jax.weights.identify import network
from tests import one_block

TINY = "se-resnext-tiny"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run on two classes of eight images each."""
    for split in ("train", "val"):
        for label in ("ant", "bee"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (40, 40), (i, 0, 0)).save(folder / f"{i}.png")
    data = DataConfig(root=str(tmp_path / "data"), backend="folder", image_size=32)
    model = ModelConfig(arch=TINY, num_classes=2)
    return Config(data=data, model=model, batch_size=4, workspace=str(tmp_path / "run"))


# ---- data ----------------------------------------------------------------------------------------


def test_a_good_dataset_is_read(config: Config) -> None:
    assert check_dataset(config).status == "ok"
    found = check_reading(config, make_mesh(jax.devices()[:1]))
    assert found.status == "ok" and found.numbers["images_per_s"] > 0
    assert "an epoch of 16 images" in found.detail


def test_other_classes_are_a_problem_with_a_fix_that_works(config: Config) -> None:
    found = check_dataset(replace(config, model=ModelConfig(arch=TINY, num_classes=3)))
    assert found.status == "problem"
    assert "has 2 class folders, but the network has 3 classes" in found.detail
    assert found.fix.startswith("train with --model.num-classes 2")
    assert check_dataset(config).status == "ok"


def test_a_folder_that_cannot_be_read_is_a_problem(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Any) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(files.os, "scandir", refuse)
    found = check_dataset(config)
    assert found.status == "problem" and "can't list" in found.detail
    assert "Permission denied; make it readable" in found.fix


def test_an_image_that_cannot_be_decoded_is_a_problem_with_a_fix_that_works(
    config: Config,
) -> None:
    mesh = make_mesh(jax.devices()[:1])
    Path(config.data.root, "train/ant/3.png").write_bytes(b"broken")
    found = check_reading(config, mesh)
    assert found.status == "problem" and "can't decode" in found.detail
    assert "--data.on-bad-image skip" in found.fix
    skipping = replace(config, data=replace(config.data, on_bad_image="skip"))
    assert check_reading(skipping, mesh).status == "ok"


def test_too_few_images_are_a_problem_with_a_fix_that_works(config: Config) -> None:
    mesh = make_mesh(jax.devices()[:1])
    found = check_reading(replace(config, batch_size=32), mesh)
    assert found.status == "problem"
    assert (found.detail, found.fix) == (
        "16 training images do not fill one optimizer step of 32",
        "lower --batch-size or --optimizer-batch-size",
    )
    assert check_reading(replace(config, batch_size=16), mesh).status == "ok"


def test_synthetic_images_need_neither_folder_nor_speed(config: Config) -> None:
    synthetic = replace(config, data=DataConfig(backend="synthetic"))
    assert check_dataset(synthetic).status == "ok"
    assert check_reading(synthetic, make_mesh()).status == "ok"


def test_the_speed_is_compared_with_the_devices() -> None:
    slow = judge_reading(600.0, 1_281_167, 8 * 855.0)
    assert slow.status == "warning" and "--data.workers" in slow.fix
    assert "takes about 35 min 35 s; the devices train at about 6840" in slow.detail
    assert judge_reading(7000.0, 1_281_167, 8 * 855.0).status == "ok"
    assert judge_reading(600.0, 1_281_167, None).status == "ok"


def test_the_needed_speed_is_the_published_one() -> None:
    config = Config(precision="fp16")
    assert needed_rate(config, "NVIDIA A100-SXM4-80GB", 8) == 8 * 855
    assert needed_rate(config, "cpu", 1) is None
    assert needed_rate(replace(config, precision="fp32"), "Tesla V100-SXM2-16GB", 1) == 132
    assert {arch for arch, _, _ in PUBLISHED} <= RECIPES.keys()


# ---- disk ----------------------------------------------------------------------------------------


def test_too_little_space_is_a_problem_with_a_fix_that_works(config: Config) -> None:
    def check(keep: int, free: int) -> Any:
        checkpoint = CheckpointConfig(keep=keep)
        return check_disk(
            replace(config, checkpoint=checkpoint, epochs=90), 1000, lambda place: free
        )

    assert check(0, 3000).status == "ok"
    found = check(0, 2999)
    assert (found.status, found.fix) == ("problem", "free space, give another --workspace")
    assert found.numbers == {"free_bytes": 2999.0, "checkpoint_bytes": 1000.0}
    found = check(-1, 90_000)
    assert found.status == "problem" and found.fix.endswith("or a smaller --checkpoint.keep")
    assert check(10, 12_000).status == "ok"
    assert check_disk(replace(config, no_checkpoints=True), 1000, lambda place: 0).status == "ok"


def test_a_workspace_that_cannot_be_written_is_a_problem(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    found = check_disk(config, 1000)
    assert found.status == "problem" and "another --workspace" in found.fix


def test_a_workspace_that_is_a_file_is_a_problem(config: Config) -> None:
    Path(config.workspace).write_text("")
    found = check_disk(config, 1000)
    assert (found.status, found.detail) == ("problem", f"{config.workspace} is a file")
    assert check_disk(replace(config, workspace=f"{config.workspace}-b"), 1000).status == "ok"


@pytest.mark.parametrize("use_ema", [None, 0.99])
def test_the_size_of_a_checkpoint_is_that_of_the_state(
    config: Config, use_ema: float | None
) -> None:
    config = replace(config, use_ema=use_ema)
    state = create_train_state(config, init_variables(network(TINY, 2), 0))
    found = size_in_bytes(abstract_state(config, make_mesh()))
    assert found == sum(np.asarray(x).nbytes for x in jax.tree.leaves(state))


# ---- memory --------------------------------------------------------------------------------------


def test_the_memory_of_a_step_grows_with_the_batch_and_a_smaller_one_is_the_fix(
    config: Config,
) -> None:
    mesh = make_mesh(jax.devices()[:2])
    arch = one_block.get_config().model.arch
    config = replace(config, model=ModelConfig(arch=arch, num_classes=2), batch_size=64)
    state = size_in_bytes(abstract_state(config, mesh))
    large = step_bytes(config, mesh)
    available = int(0.7 * large)
    found = judge_memory(large, available, 64)
    assert found.status == "problem"
    smaller = int(found.fix.split()[1])
    assert found.fix.startswith(f"--batch-size {smaller} or less") and 20 < smaller < 45
    fixed = step_bytes(replace(config, batch_size=smaller), mesh)
    assert judge_memory(fixed, available, smaller).status != "problem"
    images = 32 * 32 * 3
    assert large - fixed > (64 - smaller) * images, "and their activations"
    assert state < fixed and available_bytes(mesh) > large


def test_a_step_is_judged_by_the_memory_of_a_device() -> None:
    found = judge_memory(2_000_000_000, 1_000_000_000, 64)
    assert (found.status, found.fix.split()[1]) == ("problem", "28")
    assert "a training step takes 2 GB per device, of 1 GB" in found.detail
    assert judge_memory(950, 1000, 64).status == "warning"
    assert judge_memory(900, 1000, 64).status == "ok"


def test_batches_that_do_not_divide_are_a_problem_before_anything_is_compiled(
    config: Config,
) -> None:
    mesh = make_mesh(jax.devices()[:1])
    found = check_memory(replace(config, optimizer_batch_size=6), mesh)
    assert found.status == "problem" and found.fix == "use --batch-size 3"
    fixed = replace(config, batch_size=3, optimizer_batch_size=6)
    assert divide_batch(fixed, mesh.size) == (2, 3)

"""Checkpoints: bit for bit, best and last kept, and a broken one stepped over."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seresnext_jax.checkpoint.meta import Meta, Progress
from seresnext_jax.checkpoint.save import Checkpoints
from seresnext_jax.checkpoint.store import (
    explain_choice,
    find_checkpoint,
    read_arrays,
    read_checkpoint,
    read_meta,
    read_newest,
)
from seresnext_jax.config import Config, LossScaleConfig
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.training.state import TrainState, create_train_state
from tests.checkpoint.metas import make_meta
from tests.programs import ROOT


def state(step: int = 0, *, devices: int = 1, width: int = 3) -> TrainState:
    """A state whose values follow from the step."""
    kernel = np.random.default_rng(step).normal(size=(4, width)).astype(np.float32)
    variables: dict[str, Any] = {
        "params": {"fc": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(width)}},
        "batch_stats": {"bn1": {"mean": jnp.ones(4) * step, "var": jnp.ones(4)}},
    }
    loss_scale = LossScaleConfig(init=128.0 + step)
    config = Config(precision="fp16", loss_scale=loss_scale, seed=3, use_ema=0.9)
    made = create_train_state(config, variables)
    made = made.replace(step=jnp.int32(step))  # type: ignore[attr-defined]
    return replicate(make_mesh(jax.devices()[:devices]), made)  # type: ignore[no-any-return]


def assert_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def fill(folder: Path, keep: int, scores: list[float | None]) -> list[int]:
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step, top1 in enumerate(scores, start=1):
            checkpoints.save(state(step), make_meta(step=step, top1=top1))
            checkpoints.wait()
        return checkpoints.steps()


def restore(checkpoints: Checkpoints, like: TrainState) -> tuple[TrainState, Meta, list[str]]:
    """As a run does that is continued."""
    found, meta, notes = read_newest(checkpoints.folder, like)
    checkpoints.set_aside_after(meta.step, ".broken")
    return found, meta, notes


@pytest.mark.parametrize("devices", [1, 4])
def test_a_state_comes_back_bit_for_bit_on_any_devices(tmp_path: Path, devices: int) -> None:
    saved = make_meta(
        step=5, epoch=1, progress=Progress(results={"loss": 0.1 + 0.2}), top1=12.5, fingerprint="f"
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(5, devices=2), saved)
    with Checkpoints(tmp_path) as checkpoints:
        found, meta, notes = restore(checkpoints, state(devices=devices))
    assert_equal(found, state(5))
    assert found.params["fc"]["kernel"].sharding.num_devices == devices
    assert meta.crc32
    assert replace(meta, crc32={}) == saved and notes == []


@pytest.mark.parametrize(("keep", "kept"), [(0, [2, 5]), (2, [2, 4, 5]), (-1, [1, 2, 3, 4, 5])])
def test_best_and_last_are_kept(tmp_path: Path, keep: int, kept: list[int]) -> None:
    assert fill(tmp_path, keep, [10.0, 90.0, 50.0, None, 20.0]) == kept
    best = find_checkpoint(tmp_path / "best")
    assert best is not None and best.name == "2"
    assert find_checkpoint(tmp_path) == tmp_path / "5"


def test_a_folder_of_several_checkpoints_says_which_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoints"
    fill(folder, -1, [90.0])
    assert explain_choice(tmp_path / "run") is None
    fill(folder, -1, [90.0, 50.0])
    for path in (tmp_path / "run", folder):
        said = explain_choice(path)
        assert said == f"{path}: using checkpoint 2, the newest; for the best, give {path}/best"
        best = find_checkpoint(path / "best")
        assert best is not None and best.name == "1"
    for path in (folder / "1", folder / "best", tmp_path / "none"):
        assert explain_choice(path) is None


def test_no_best_is_promised_if_no_checkpoint_was_evaluated(tmp_path: Path) -> None:
    fill(tmp_path, -1, [None, None])
    assert explain_choice(tmp_path) == f"{tmp_path}: using checkpoint 2, the newest"


def test_a_step_can_be_saved_again_with_its_evaluation(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3), make_meta(step=3, epoch=0))
        checkpoints.save(state(3), make_meta(step=3, epoch=1, top1=50.0))
    meta = read_meta(tmp_path / "3")
    assert (meta.epoch, meta.top1) == (1, 50.0)


def test_what_is_best_is_not_guessed_past_a_damaged_result(tmp_path: Path) -> None:
    fill(tmp_path, -1, [10.0, 30.0, 20.0])
    (tmp_path / "2" / "meta" / "metadata").write_text("{")
    with pytest.raises(UserError, match="2 can't be read"):
        find_checkpoint(tmp_path / "best")


def test_of_equal_results_the_first_is_best(tmp_path: Path) -> None:
    assert fill(tmp_path, 0, [10.0, 90.0, 90.0, 20.0]) == [2, 4]
    best = find_checkpoint(tmp_path / "best")
    assert best is not None and best.name == "2"


def test_progress_counts_the_epochs_since_the_first_best_one() -> None:
    progress = Progress()
    assert progress.epochs_without_better == -1
    found = []
    for epoch, top1 in enumerate([50.0, 60.0, 60.0, 55.0]):
        progress.finish_epoch(epoch, {"val.top1": top1})
        found.append((progress.best_epoch, progress.epochs_without_better))
    assert found == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert (progress.finished_epochs, progress.best_top1) == (4, 60.0)


@pytest.mark.parametrize(("keep", "kept"), [(0, [2, 5]), (2, [1, 2, 4, 5])])
def test_the_last_good_ones_outlast_bad_steps(tmp_path: Path, keep: int, kept: list[int]) -> None:
    """Also over a restart."""
    for steps in ([1, 2, 3], [4, 5]):
        with Checkpoints(tmp_path, keep=keep) as checkpoints:
            for step in steps:
                saved = state(step).replace(bad_steps=jnp.int32(max(0, step - 2)))  # type: ignore[attr-defined]
                checkpoints.save(saved, make_meta(step=step))
                checkpoints.wait()
            left = checkpoints.steps()
    assert left == kept


def test_any_broken_file_costs_one_checkpoint(tmp_path: Path) -> None:
    """Cut short or emptied: it is named, or not needed, and the one before is found."""
    source = tmp_path / "source"
    fill(source, -1, [1.0, 2.0])
    files = [p.relative_to(source) for p in sorted((source / "2").rglob("*")) if p.is_file()]
    files = [f for f in files if "ocdbt.process_0" not in f.parts and f.suffix != ".txt"]
    named = set()
    for file in files:
        for left in (0, (source / file).stat().st_size // 2):
            folder = Path(shutil.copytree(source, tmp_path / "run", dirs_exist_ok=True))
            (folder / file).write_bytes((folder / file).read_bytes()[:left])
            with Checkpoints(folder, keep=-1) as checkpoints:
                found, _, notes = restore(checkpoints, state())
            assert_equal(found, state(int(found.step)))
            assert len(notes) == 2 - int(found.step), file
            if notes:
                named.add("/".join(file.parts[1:3]))
            shutil.rmtree(folder)
    assert {"meta/metadata", "weights/d", "training/d", "weights/_METADATA"} <= named


def test_one_byte_changed_in_the_arrays_is_found(tmp_path: Path) -> None:
    """Large enough for a file of their own, which orbax reads unchecked."""
    with Checkpoints(tmp_path, keep=-1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state(step, width=3000), make_meta(step=step))
    files = [path for path in (tmp_path / "2/weights").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(UserError, match="kernel is not what was saved"):
        read_arrays(tmp_path / "2", "weights")
    found, _, notes = read_newest(tmp_path, state(width=3000))
    assert int(found.step) == 1 and len(notes) == 1
    assert (tmp_path / "2").exists(), "reading changes nothing"


def test_going_back_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    fill(tmp_path, -1, [None, 70.0, 80.0])
    with Checkpoints(tmp_path, keep=0) as checkpoints:
        assert checkpoints.set_aside_after(1, ".later") == [2, 3]
        checkpoints.save(state(2), make_meta(step=2, top1=60.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "2.later", "3.later"]


def test_a_renamed_copy_can_be_read(tmp_path: Path) -> None:
    fill(tmp_path / "run", -1, [None])
    copy = tmp_path / "a copy"
    shutil.copytree(tmp_path / "run/1", copy)
    found, meta = read_checkpoint(copy, state())
    assert_equal(found, state(1))
    assert meta.step == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --workspace"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def break_files(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])


def test_a_broken_newest_is_named_moved_aside_and_stepped_over(tmp_path: Path) -> None:
    fill(tmp_path, -1, [None, None, None])
    break_files(tmp_path / "3")
    with Checkpoints(tmp_path, keep=-1) as checkpoints:
        found, meta, notes = restore(checkpoints, state())
        assert int(found.step) == 2 and meta.step == 2
        assert len(notes) == 1 and f"checkpoint {tmp_path / '3'} can't be read" in notes[0]
        assert checkpoints.steps() == [1, 2] and (tmp_path / "3.broken").is_dir()
        checkpoints.save(state(3), make_meta(step=3, epoch=33))
    assert read_meta(tmp_path / "3").epoch == 33


def test_a_killed_save_leaves_no_checkpoint(tmp_path: Path) -> None:
    fill(tmp_path, -1, [None])
    (tmp_path / "2.orbax-checkpoint-tmp" / "weights").mkdir(parents=True)
    (tmp_path / "7").mkdir()
    assert find_checkpoint(tmp_path) == tmp_path / "1"
    with Checkpoints(tmp_path, keep=-1) as checkpoints:
        found, _, _ = restore(checkpoints, state())
    assert int(found.step) == 1


def test_another_network_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, -1, [None])
    with Checkpoints(tmp_path, keep=-1) as checkpoints:
        with pytest.raises(UserError, match="fits this run"):
            restore(checkpoints, state(width=7))
        assert checkpoints.steps() == [1]


def test_an_empty_folder_is_not_a_run(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None and find_checkpoint(tmp_path / "none") is None
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no checkpoint"):
        restore(checkpoints, state())


def test_weights_are_read_without_optimizer_or_device(tmp_path: Path) -> None:
    fill(tmp_path, 0, [1.0])
    weights = read_arrays(tmp_path / "1", "weights")
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(weights))
    wanted = state(1)
    assert_equal(weights["params"], jax.device_get(wanted.params))
    assert_equal(weights["ema"], jax.device_get(wanted.ema))


META = """{
  "step": 18, "epoch": 3, "top1": 27.604166666666668, "bad_steps": 0,
  "progress": {
    "finished_epochs": 3, "best_top1": 27.604166666666668, "best_epoch": 2,
    "interval_loss": {"total": 2.5, "count": 1}, "epoch_loss": {"total": 0.0, "count": 0},
    "epoch_bad_images": 0, "last_step": {"loss": 2.1159257888793945},
    "results": {"val.top1": 27.604166666666668, "train.bad_images": 0, "train.loss": NaN}
  },
  "config": {
    "model": {"arch": "resnet18", "num_classes": 10},
    "data": {"image_size": 32, "backend": "a former one", "crop_area": [0.7, 1.0], "gone": 1},
    "optim": {"lr": null, "decay_mask": "all", "lr_steps": [30, 60]},
    "epochs": 3, "use_ema": 0.5, "raport_file": "experiment_raport.json", "gone": {"a": 1}
  },
  "plan": {
    "num_images": 1438, "num_devices": 1, "batch_size": 32, "accumulation": 1, "global_batch": 32,
    "bn_group_size": 32, "lr": 0.04, "steps_per_epoch": 6, "epochs": 3, "total_steps": 18
  },
  "fingerprint": "c3216d", "class_names": ["0", "1"], "crc32": {"params/fc/bias": 3298758519},
  "batches_tracked": {"weights": 7, "ema": null}, "gone": 1
}"""
"""As the first version wrote it, and with what other versions may add or lack."""


def test_a_meta_of_another_version_is_read() -> None:
    meta = Meta.from_json(json.loads(META))
    assert (meta.step, meta.epoch, meta.top1, meta.bad_steps) == (18, 3, 27.604166666666668, 0)
    assert (meta.fingerprint, meta.class_names) == ("c3216d", ("0", "1"))
    assert meta.crc32 == {"params/fc/bias": 3298758519}
    assert meta.batches_tracked == {"weights": 7, "ema": None}
    assert (meta.progress.best_epoch, meta.progress.interval_loss.value) == (2, 2.5)
    assert (meta.plan.global_batch, meta.plan.lr) == (32, 0.04)
    assert (meta.config.model.arch, meta.config.data.crop_area) == ("resnet18", (0.7, 1.0))
    assert (meta.config.optim.lr_steps, meta.config.optim.momentum) == ((30, 60), 0.875)
    assert Meta.from_json(json.loads(json.dumps(meta.to_json()))).config == meta.config
    assert not (json.loads(META).keys() - {"gone"}) ^ meta.to_json().keys()


def test_a_meta_needs_only_what_has_no_default() -> None:
    needed = ("step", "epoch", "progress", "config", "plan")
    saved = {name: value for name, value in json.loads(META).items() if name in needed}
    meta = Meta.from_json(saved)
    assert (meta.top1, meta.class_names, meta.crc32, meta.fingerprint) == (None, None, {}, None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"plan": {"lr": 1}}, "missing 9 required"),
        ({"plan": None}, "Plan is None"),
        ({"step": "x"}, "step is 'x'"),
        ({"class_names": [3, "a"]}, r"class_names is \(3, 'a'\)"),
        ({"config": {"model": {"arch": 3}}}, "arch is 3"),
        ({"progress": {"epoch_loss": 3}}, "Mean is 3"),
        ({"top1": {"a": 1}}, "top1 is {'a': 1}"),
        ({"crc32": [1]}, r"crc32 is \(1,\)"),
    ],
)
def test_a_foreign_meta_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/metadata").write_text(json.dumps({**json.loads(META), **change}))
    with pytest.raises(UserError, match=f"meta of another kind .*{problem}") as caught:
        read_meta(tmp_path)
    assert str(caught.value).isprintable()


def test_importing_changes_no_setting() -> None:
    code = (
        "import logging, sys, seresnext_jax.checkpoint.store\n"
        "assert sys.unraisablehook is sys.__unraisablehook__\n"
        "assert logging.getLogger('asyncio').level == logging.NOTSET\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

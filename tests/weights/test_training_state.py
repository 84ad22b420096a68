"""Whole training states between PyTorch and here: one step on either side is the same."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seresnext_jax.checkpoint.meta import Progress
from seresnext_jax.checkpoint.store import read_newest
from seresnext_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from seresnext_jax.data.batch import Batch
from seresnext_jax.data.normalize import IMAGENET_MEAN, IMAGENET_STD
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh
from seresnext_jax.training.optimizer import get_momentum
from seresnext_jax.training.step import make_train_step
from seresnext_jax.weights import training_state as training
from seresnext_jax.weights.identify import network
from seresnext_jax.weights.state_dict import from_state_dict
from seresnext_jax.weights.torch_sgd import momentum_from_torch, momentum_to_torch
from tests.reference import torch_model, torch_training
from tests.weights.conversion import (
    CLASSES,
    TINY,
    StateDict,
    as_numpy,
    assert_same_state,
    command,
    reference,
    without_counters,
)

STEPS_PER_EPOCH = 5
CONFIG = Config(
    model=ModelConfig(TINY, num_classes=CLASSES),
    data=DataConfig(image_size=64),
    optim=OptimConfig(decay_mask="nvidia-names", weight_decay=0.01, warmup=1),
    epochs=10,
    batch_size=4,
    optimizer_batch_size=4,
    use_ema=0.9,
)
CONFIG_FILE = f"""
from seresnext_jax.config import *
def get_config():
    return {CONFIG!r}
"""


def random_batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (4, 64, 64, 3), np.uint8), rng.integers(0, CLASSES, 4, np.int32)


def torch_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    pixels, labels = random_batch(seed)
    images = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    batch = torch_training.MicroBatch(
        torch.from_numpy(images.transpose(0, 3, 1, 2)).float(), torch.from_numpy(labels).long()
    )
    torch_training.train_step(model, optimizer, [batch], smoothing=0.1)


def flax_step(state: Any, config: Config, *, lr: float, seed: int) -> Any:
    pixels, labels = random_batch(seed)
    mesh = make_mesh(jax.devices()[:1])
    config = replace(config, model=ModelConfig(TINY, CLASSES), label_smoothing=0.1, mixup=0.0)
    step = make_train_step(network(TINY, CLASSES).apply, config, mesh)
    batch = Batch(jnp.asarray(pixels[None]), jnp.asarray(labels[None]), jnp.ones((1, 4), bool))
    return step(state, batch, jnp.float32(lr))[0]


def trained(decay: str) -> tuple[torch_model.ResNet, torch.optim.SGD]:
    """A network after two steps, so that its momentum is a sum."""
    torch.manual_seed(1)
    model = reference(TINY, CLASSES)
    torch_model.randomize_like_trained(model, seed=1, image_size=64)
    optimizer = torch_training.sgd(
        model,
        lr=0.02,
        momentum=0.875,
        weight_decay=0.01,
        decay=decay,  # type: ignore[arg-type]
    )
    for seed in (1, 2):
        torch_step(model, optimizer, seed)
    return model, optimizer


def average_of(model: torch_model.ResNet) -> StateDict:
    return {k: v * 2 if v.is_floating_point() else v for k, v in model.state_dict().items()}


def to_checkpoint(tmp_path: Path, *more: object) -> int:
    (tmp_path / "config.py").write_text(CONFIG_FILE)
    return command(
        "to-flax", tmp_path / "a.pth.tar", tmp_path / "run",
        "--training", tmp_path / "config.py", "--steps-per-epoch", STEPS_PER_EPOCH, *more,
    )  # fmt: skip


def assert_close(found: Any, wanted: Any) -> None:
    """Within 1e-5 of each tensor's largest entry."""

    def check(a: Any, b: Any) -> None:
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1e-3, np.abs(b).max()))

    jax.tree.map(check, found, wanted)


def numpy_optimizer(optimizer: torch.optim.SGD) -> dict[str, Any]:
    """An optimizer's state dict with arrays for tensors."""
    state = optimizer.state_dict()
    buffers = {
        i: {"momentum_buffer": entry["momentum_buffer"].numpy()}
        for i, entry in state["state"].items()
    }
    return {**state, "state": buffers}


def test_a_training_state_continues_as_in_pytorch(tmp_path: Path) -> None:
    model, optimizer = trained("nvidia-names")
    file = tmp_path / "a.pth.tar"
    torch_training.save_training_checkpoint(file, model, optimizer, epoch=3, best_prec1=61.5)
    config = replace(CONFIG, use_ema=None)
    state, meta, _, _ = training.from_torch(file, config, steps_per_epoch=STEPS_PER_EPOCH)
    assert (int(state.step), meta.step, meta.epoch) == (15, 15, 3)
    assert (meta.progress.finished_epochs, meta.progress.best_top1) == (3, 61.5)
    assert state.ema is None

    state = flax_step(state, config, lr=0.02, seed=3)
    torch_step(model, optimizer, seed=3)
    wanted = from_state_dict(as_numpy(model.state_dict()), source="reference").variables
    assert_close(state.variables, wanted)
    momentum = momentum_from_torch(numpy_optimizer(optimizer), wanted["params"], source="reference")
    assert_close(get_momentum(state.opt_state), momentum)


def test_momentum_in_a_single_group() -> None:
    """The original's --bn-weight-decay."""
    model, optimizer = trained("all")
    variables = from_state_dict(as_numpy(model.state_dict()), source="reference").variables
    state = numpy_optimizer(optimizer)
    momentum = momentum_from_torch(state, variables["params"], source="reference")
    by_name = {
        name: optimizer.state[parameter]["momentum_buffer"].numpy()
        for name, parameter in model.named_parameters()
    }
    np.testing.assert_array_equal(
        momentum["layers"]["0"]["0"]["conv2"]["kernel"],
        by_name["layers.0.0.conv2.weight"].transpose(2, 3, 1, 0),
    )
    config = OptimConfig(decay_mask="all", weight_decay=0.01)
    back = momentum_to_torch(momentum, config, lr=0.02)
    assert [group["params"] for group in back["param_groups"]] == [list(range(len(by_name)))]
    assert back["param_groups"][0]["weight_decay"] == 0.01
    for i, buffer in enumerate(by_name.values()):
        np.testing.assert_array_equal(back["state"][i]["momentum_buffer"], buffer)


def test_a_training_state_both_ways_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained("nvidia-names")
    file, out = tmp_path / "a.pth.tar", tmp_path / "out.pth.tar"
    average = {
        name: torch.tensor(2) if name.endswith("num_batches_tracked") else value
        for name, value in average_of(model).items()
    }
    torch_training.save_training_checkpoint(
        file, model, optimizer, epoch=3, best_prec1=61.5, ema=average
    )
    assert to_checkpoint(tmp_path) == 0
    assert command(
        "to-torch", tmp_path / "run", out, "--layout", "current", "--module-prefix", "--checkpoint"
    ) == 0  # fmt: skip

    wanted = torch.load(file, weights_only=False)
    found = torch.load(out, weights_only=True)
    assert (found["epoch"], found["best_prec1"]) == (3, 61.5)
    assert_same_state(found["state_dict"], wanted["state_dict"])
    assert_same_state(found["state_dict_ema"], wanted["state_dict_ema"])
    assert found["state_dict"]["module.bn1.num_batches_tracked"] == 3
    assert found["optimizer"]["state"].keys() == wanted["optimizer"]["state"].keys()
    for i, entry in wanted["optimizer"]["state"].items():
        buffer = found["optimizer"]["state"][i]["momentum_buffer"]
        assert torch.equal(buffer, entry["momentum_buffer"]), i
    groups = [{k: v for k, v in g.items() if k != "lr"} for g in found["optimizer"]["param_groups"]]
    assert groups == [
        {k: v for k, v in g.items() if k != "lr"} for g in wanted["optimizer"]["param_groups"]
    ]
    # Epoch 2 is the second after one of warm-up: a cosine over the nine left.
    rate = 0.256 * 4 / 256 * 0.5 * (1 + np.cos(np.pi * 1 / 9))
    assert [g["lr"] for g in found["optimizer"]["param_groups"]] == pytest.approx([rate] * 2)

    again = reference(TINY, CLASSES)
    again.load_state_dict({k.removeprefix("module."): v for k, v in found["state_dict"].items()})
    resumed = torch_training.sgd(again, lr=1.0)
    resumed.load_state_dict(found["optimizer"])
    torch_step(again, resumed, seed=3)
    for group in optimizer.param_groups:
        group["lr"] = resumed.param_groups[0]["lr"]
    torch_step(model, optimizer, seed=3)
    assert_same_state(without_counters(again.state_dict()), without_counters(model.state_dict()))


def test_what_a_config_changes_is_said_and_can_be_overridden(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = trained("nvidia-names")
    file = tmp_path / "a.pth.tar"
    for group in optimizer.param_groups:
        group["lr"] = 0.256 * 4 / 256 * 0.5 * (1 + np.cos(np.pi * 1 / 9))
    torch_training.save_training_checkpoint(
        file, model, optimizer, epoch=3, best_prec1=0, ema=average_of(model)
    )

    def notes(*more: str) -> str:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        capsys.readouterr()
        to_checkpoint(tmp_path, *more)
        return "\n".join(
            line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")
        )

    assert notes() == ""
    assert "add --optim.decay-mask nvidia-names" in notes("--optim.decay-mask", "no-bn")
    assert "add --optim.momentum 0.875" in notes("--optim.momentum=0.5")
    assert "add --optim.weight-decay 0.01" in notes("--optim.weight-decay", "0.02")
    assert "nesterov False, the config True" in notes("--optim.nesterov")
    assert "last learning rate is" in notes("--optim.lr", "3")
    assert "moving average is left out: add --use-ema" in notes("--use-ema", "None")
    with pytest.raises(UserError, match="did you mean --optim.momentum"):
        notes("--optim.momentun", "0.5")
    with pytest.raises(UserError, match="as --optimizer-batch-size"):
        notes("--optimizer-batch-size", "-1")
    with pytest.raises(UserError, match="after epoch 3 of a run.* --epochs"):
        notes("--epochs", "2")


def test_a_converted_checkpoint_restores_into_a_run(tmp_path: Path) -> None:
    model, optimizer = trained("nvidia-names")
    torch_training.save_training_checkpoint(
        tmp_path / "a.pth.tar", model, optimizer, epoch=3, best_prec1=0, ema=average_of(model)
    )
    to_checkpoint(tmp_path)
    file = tmp_path / "a.pth.tar"
    like, *_ = training.from_torch(file, CONFIG, steps_per_epoch=1)
    folder = tmp_path / "run" / "checkpoints"
    state, meta, notes = read_newest(folder, jax.tree.map(jnp.zeros_like, like))
    assert (int(state.step), notes) == (15, [])
    jax.tree.map(np.testing.assert_array_equal, state.params, like.params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, like.ema)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, like.opt_state)
    assert meta.config.model.arch == TINY
    assert (meta.plan.steps_per_epoch, meta.plan.global_batch) == (5, 4)
    assert (meta.fingerprint, meta.epoch, meta.step) == (None, 3, 15)
    with pytest.raises(UserError, match="has checkpoints already"):
        to_checkpoint(tmp_path)


def test_before_the_first_step_there_is_no_momentum(tmp_path: Path) -> None:
    model = reference(TINY, CLASSES)
    file = tmp_path / "a.pth.tar"
    torch_training.save_training_checkpoint(
        file, model, torch_training.sgd(model, lr=0.1, weight_decay=0.01), 0, 0
    )
    config = replace(CONFIG, precision="fp16")
    state, meta, _, notes = training.from_torch(file, config, steps_per_epoch=5)
    assert all(not x.any() for x in jax.tree.leaves(state.opt_state))
    assert state.ema is not None
    jax.tree.map(np.testing.assert_array_equal, state.ema["params"], state.params)
    assert notes == [
        "there is no moving average: it starts as a copy of the weights",
        "the loss scale starts at 128: the file has none",
    ]
    assert meta.progress == Progress(), "it was never evaluated"


def test_a_step_within_an_epoch_is_repeated_by_the_original(tmp_path: Path) -> None:
    model, file = reference(TINY, CLASSES), tmp_path / "a.pth.tar"
    optimizer = torch_training.sgd(model, lr=0.1)
    torch_training.save_training_checkpoint(file, model, optimizer, epoch=0, best_prec1=0)
    config = replace(CONFIG, optim=replace(CONFIG.optim, decay_mask="no-bn"), use_ema=None)
    state, meta, *_ = training.from_torch(file, config, steps_per_epoch=5)
    state, meta = replace(state, step=jnp.int32(7)), replace(meta, step=7)
    training.write_first_checkpoint(tmp_path / "run", state, meta)
    content, notes = training.to_torch(tmp_path / "run", layout="current", prefix="")
    assert (content["epoch"], content["best_prec1"]) == (1, 0.0)
    assert "state_dict_ema" not in content
    assert notes == [
        "2 steps into epoch 1: the original will repeat that epoch",
        "the original will decay the downsample BatchNorms, unlike this run",
    ]


def test_weights_are_no_checkpoint_to_convert(tmp_path: Path) -> None:
    torch.save(reference(TINY, CLASSES).state_dict(), tmp_path / "a.pth")
    words = ("to-torch", tmp_path / "a.pth", tmp_path / "b.pth", "--layout", "current")
    with pytest.raises(UserError, match="a.pth is not a checkpoint: leave --checkpoint out"):
        command(*words, "--checkpoint")
    assert command(*words) == 0


def test_states_of_other_optimizers_are_refused_with_a_fix(tmp_path: Path) -> None:
    model, optimizer = trained("nvidia-names")
    file = tmp_path / "a.pth.tar"
    torch_training.save_training_checkpoint(
        file, model, optimizer, epoch=3, best_prec1=0, ema=average_of(model)
    )
    adamw = ("--optim.optimizer", "adamw", "--optim.lr", "0.001")
    with pytest.raises(UserError, match="the config has the optimizer adamw.*leave --training out"):
        to_checkpoint(tmp_path, *adamw)
    assert command("to-flax", file, tmp_path / "weights") == 0

    to_checkpoint(tmp_path)
    (meta,) = (tmp_path / "run" / "checkpoints").glob("*/meta/metadata")
    saved = json.loads(meta.read_text())
    saved["config"]["optim"]["optimizer"] = "adamw"
    meta.write_text(json.dumps(saved))
    words = ("to-torch", tmp_path / "run", tmp_path / "b.pth.tar", "--layout", "current")
    with pytest.raises(UserError, match="has the optimizer adamw.*leave --checkpoint out"):
        command(*words, "--checkpoint")
    assert command(*words) == 0


def test_an_average_of_another_network(tmp_path: Path) -> None:
    model, optimizer = trained("nvidia-names")
    torch_training.save_training_checkpoint(
        tmp_path / "a.pth.tar", model, optimizer, 3, 0, ema=reference("resnet18", 7).state_dict()
    )
    with pytest.raises(UserError, match="moving average of a resnet18"):
        to_checkpoint(tmp_path)


def test_training_states_that_do_not_fit(tmp_path: Path) -> None:
    model = reference(TINY, CLASSES)
    torch.save(model.state_dict(), tmp_path / "a.pth.tar")
    with pytest.raises(UserError, match="no training state"):
        to_checkpoint(tmp_path)
    optimizer = torch_training.sgd(model, lr=0.1).state_dict()
    average = {"epoch": 3, "state_dict_ema": model.state_dict(), "optimizer": optimizer}
    torch.save(average, tmp_path / "a.pth.tar")
    with pytest.raises(UserError, match="no training state"):
        to_checkpoint(tmp_path)
    foreign = torch.optim.SGD(
        [{"params": list(model.parameters())[:3]}, {"params": list(model.parameters())[3:]}], lr=1
    )
    torch_training.save_training_checkpoint(tmp_path / "a.pth.tar", model, foreign, 1, 0)
    with pytest.raises(UserError, match=r"optimizer groups of \[3, \d+\] tensors"):
        to_checkpoint(tmp_path)
    with pytest.raises(UserError, match="7 classes, the config is .* with 8"):
        to_checkpoint(tmp_path, "--model.num-classes", "8")

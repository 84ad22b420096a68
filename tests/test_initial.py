"""Where training starts: --init-from, a new head, a frozen backbone, a run that is continued."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import train
from convert.weights import network, to_state_dict
from seresnext_jax import optim
from seresnext_jax.checkpoint import Checkpoints
from seresnext_jax.config import Config, ModelConfig, OptimConfig
from seresnext_jax.data.batch import Batch
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh
from seresnext_jax.precision import POLICIES, init_loss_scale
from seresnext_jax.report.console import Console
from seresnext_jax.state import create
from seresnext_jax.steps import make_train_step
from seresnext_jax.weights import WeightsInfo, save_weights

TINY = "se-resnext-tiny"
CONFIG = Config(model=ModelConfig(TINY, num_classes=3), seed=1)


@pytest.fixture(scope="module")
def loaded() -> Any:
    """Weights in which no two tensors are alike."""
    model = network(TINY, 3)
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(0.01, 0.1, x.shape).astype(np.float32), shapes)


class Zeros:
    """In the network's place: weights that are zero before training, and compile at once."""

    def __init__(self, like: Any, num_classes: int) -> None:
        self.like, self.num_classes = like, num_classes

    def init(self, *_: Any, train: bool) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, self.like)
        head = {"kernel": jnp.zeros((512, self.num_classes)), "bias": jnp.zeros(self.num_classes)}
        return {**zeros, "params": {**zeros["params"], "fc": head}}


def initial(config: Config, loaded: Any, class_names: tuple[str, ...] = ()) -> Any:
    model: Any = Zeros(loaded, config.model.num_classes)
    return train.initial_variables(config, model, class_names, Console(enabled=True))


def same(a: Any, b: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def with_weights(folder: Path, variables: Any, names: tuple[str, ...] | None) -> Config:
    save_weights(folder, variables, WeightsInfo(TINY, 3, names))
    return replace(CONFIG, init_from=str(folder))


@pytest.mark.parametrize(
    ("stored", "here", "kept"),
    [
        (("a", "b", "c"), ("a", "b", "c"), True),
        (None, ("a", "b", "c"), True),
        (("a", "b", "c"), (), True),
        (("a", "b", "c"), ("a", "b", "d"), False),
    ],
)
def test_the_head_is_kept_for_the_same_classes(
    tmp_path: Path,
    loaded: Any,
    capsys: pytest.CaptureFixture[str],
    stored: tuple[str, ...] | None,
    here: tuple[str, ...],
    kept: bool,
) -> None:
    found = initial(with_weights(tmp_path / "w", loaded, stored), loaded, here)
    assert same(found["params"]["fc"], loaded["params"]["fc"]) == kept
    assert same(found["params"]["layers"], loaded["params"]["layers"])
    out = " ".join(capsys.readouterr().out.split())
    assert ("new classifier for 3 classes (the weights have other ones)" in out) == (not kept)


def test_a_run_that_is_continued_needs_no_weights_to_start_from(
    tmp_path: Path, loaded: Any
) -> None:
    config = replace(CONFIG, init_from=str(tmp_path / "gone"), workspace=str(tmp_path / "run"))
    with pytest.raises(UserError, match="gone"):
        initial(replace(config, resume="auto"), loaded)
    fresh = initial(replace(config, init_from=""), loaded)
    state = create(
        fresh,
        optimizer=optim.make_optimizer(config.optim),
        loss_scale=init_loss_scale(POLICIES["fp32"], 1.0),
        seed=0,
        with_ema=False,
    )
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(state, {})
    assert same(initial(replace(config, resume="auto"), loaded), fresh)


def test_a_frozen_backbone_is_that_of_the_torch_file_and_stays(tmp_path: Path, loaded: Any) -> None:
    state = to_state_dict(loaded, layout="ngc", prefix="module.")
    torch.save({k: torch.from_numpy(x) for k, x in state.items()}, tmp_path / "a.pth")
    config = replace(
        CONFIG,
        model=ModelConfig(TINY, num_classes=5),
        optim=OptimConfig(freeze_backbone=True),
        init_from=str(tmp_path / "a.pth"),
    )
    variables = initial(config, loaded)
    assert variables["params"]["fc"]["kernel"].shape == (512, 5)
    head = np.array(variables["params"]["fc"]["kernel"])

    optimizer = optim.make_optimizer(config.optim)
    begun = create(
        jax.tree.map(jnp.asarray, variables),
        optimizer=optimizer,
        loss_scale=init_loss_scale(POLICIES["fp32"], 1.0),
        seed=0,
        with_ema=False,
    )
    step = make_train_step(
        network(TINY, 5).apply, optimizer, train.step_options(config), make_mesh(jax.devices()[:1])
    )
    pixels = np.random.default_rng(1).integers(0, 256, (1, 4, 32, 32, 3), np.uint8)
    batch = Batch(jnp.asarray(pixels), jnp.arange(4, dtype=jnp.int32)[None], jnp.ones((1, 4), bool))
    stepped = step(begun, batch, jnp.float32(0.1))[0]
    assert not np.array_equal(stepped.params["fc"]["kernel"], head)
    for name in ("conv1", "bn1", "layers"):
        assert same(stepped.params[name], loaded["params"][name]), name
    assert same(stepped.batch_stats, loaded["batch_stats"])

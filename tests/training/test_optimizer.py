"""The learning-rate tables and the decay groups of the original."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seresnext_jax.config import Config, ModelConfig, OptimConfig
from seresnext_jax.model.network import make_network
from seresnext_jax.plan import Plan, resolve
from seresnext_jax.torch_keys import torch_key
from seresnext_jax.training.optimizer import decay_mask, learning_rate, make_optimizer


def plan(epochs: int) -> Plan:
    config = Config(epochs=epochs, optim=OptimConfig(lr_per_256=0.256), batch_size=128)
    return resolve(config, num_images=1_281_167, num_devices=8)


def at_epochs(config: OptimConfig, epochs: int, which: list[int]) -> list[float]:
    p = plan(epochs)
    return [learning_rate(config, p, e * p.steps_per_epoch) for e in which]


def test_the_90_epoch_recipe() -> None:
    which = [0, 1, 6, 7, 8, 9, 30, 48, 49, 60, 88, 89]
    wanted = [0.128, 0.256, 0.896, 1.024, 1.024, 1.023624, 0.852647]
    wanted += [0.531611, 0.512, 0.302557, 0.001502, 0.000376]
    assert at_epochs(OptimConfig(), 90, which) == pytest.approx(wanted, abs=5e-7)


def test_the_250_epoch_recipe() -> None:
    assert at_epochs(OptimConfig(), 250, [129, 249]) == pytest.approx([0.512, 4.3e-5], abs=5e-7)


def test_linear_and_end_lr() -> None:
    found = at_epochs(OptimConfig(lr_schedule="linear"), 90, [7, 8, 49, 89])
    assert found == pytest.approx([1.024, 1.024, 0.512, 1.024 / 82])
    (last,) = at_epochs(OptimConfig(end_lr=0.1), 90, [89])
    assert last == pytest.approx(0.1 + 0.000376 / 1.024 * 0.924, abs=1e-6)
    (last,) = at_epochs(OptimConfig(lr_schedule="linear", end_lr=0.1), 90, [89])
    assert last == pytest.approx(0.1 + 0.924 / 82)


def test_step_milestones_are_absolute_epochs() -> None:
    found = at_epochs(OptimConfig(lr_schedule="step"), 90, [7, 29, 30, 60, 80])
    assert found == pytest.approx([1.024, 1.024, 0.1024, 0.01024, 0.001024])


def test_the_rate_is_constant_within_an_epoch_unless_per_step() -> None:
    p, stairs, slope = plan(90), OptimConfig(), OptimConfig(lr_update="step")
    n = p.steps_per_epoch
    assert learning_rate(stairs, p, 30 * n) == learning_rate(stairs, p, 31 * n - 1)
    assert learning_rate(slope, p, 30 * n) == learning_rate(stairs, p, 30 * n)
    assert learning_rate(slope, p, 0) == pytest.approx(1.024 / (8 * n))
    assert learning_rate(slope, p, 8 * n - 1) == pytest.approx(1.024)
    assert learning_rate(slope, p, 31 * n - 1) < learning_rate(slope, p, 30 * n)


@cache
def full_size() -> Any:
    network = make_network(ModelConfig(), jnp.dtype("float32"))
    image = jnp.zeros((1, 32, 32, 3))
    init = lambda key: network.init(key, image, train=False)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))["params"]


def spared(rule: Any) -> dict[str, int]:
    params = full_size()
    mask = jax.tree.leaves(decay_mask(params, rule))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        torch_key(("params", *(k.key for k in path))): x.size
        for (path, x), decayed in zip(leaves, mask, strict=True)
        if not decayed
    }


def test_nvidias_names_spare_200_tensors_and_decay_the_shortcuts() -> None:
    found = spared("nvidia-names")
    assert len(found) == 200 and sum(found.values()) == 130_176
    assert not any("downsample" in name or "squeeze" in name for name in found)


def test_no_bn_also_spares_the_eight_of_the_shortcuts() -> None:
    more = set(spared("no-bn")) - set(spared("nvidia-names"))
    kinds = ("weight", "bias")
    assert more == {f"layers.{s}.0.downsample.1.{kind}" for s in range(4) for kind in kinds}
    assert spared("all") == {}


def test_updates_are_torchs_coupled_decay_and_momentum_in_numbers() -> None:
    optimizer = make_optimizer(OptimConfig(momentum=0.9, weight_decay=0.1))
    params = {"fc": {"kernel": jnp.array([2.0])}}
    state = optimizer.init(params)
    p, buffer = 2.0, 0.0
    for gradient in (1.0, -0.5, 0.25):
        updates, state = optimizer.update({"fc": {"kernel": jnp.array([gradient])}}, state, params)
        params = optax.apply_updates(params, optax.tree.scale(-0.5, updates))
        buffer = 0.9 * buffer + gradient + 0.1 * p
        p -= 0.5 * buffer
        np.testing.assert_allclose(params["fc"]["kernel"], [p], rtol=1e-6)


def test_the_backbone_can_learn_slower_or_not_at_all() -> None:
    params = {"conv1": {"kernel": jnp.ones(1)}, "fc": {"kernel": jnp.ones(1)}}
    for config, factor in (
        (OptimConfig(backbone_lr_multiplier=0.1), 0.1),
        (OptimConfig(freeze_backbone=True), 0.0),
    ):
        optimizer = make_optimizer(config)
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        ratio = updates["conv1"]["kernel"] / updates["fc"]["kernel"]
        np.testing.assert_allclose(ratio, [factor], rtol=1e-6)

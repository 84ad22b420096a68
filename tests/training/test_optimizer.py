"""The learning-rate tables and the decay groups of the original."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from seresnext_jax.checkpoint.arrays import by_name
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


# ---- against torch.optim -------------------------------------------------------------------------

SHAPES = {
    ("conv1", "kernel"): (3, 3, 2, 4),
    ("bn1", "scale"): (4,),
    ("bn1", "bias"): (4,),
    ("fc", "kernel"): (4, 5),
    ("fc", "bias"): (5,),
}
RATES = (0.05, 0.05, 0.02, 0.1, 0.01, 0.03, 0.03)
"""Learning rate of each step."""


def random_tree(seed: int, scale: float = 1.0) -> Any:
    rng = np.random.default_rng(seed)
    flat = {path: jnp.float32(scale * rng.normal(size=s)) for path, s in SHAPES.items()}
    return unflatten_dict(flat)


def gradients(step: int) -> Any:
    """Some shorter than the limits of the tests, some longer."""
    return random_tree(100 + step, scale=0.02 if step % 2 else 3.0)


def trained(config: OptimConfig) -> dict[tuple[str, ...], np.ndarray]:
    """The parameters after a step for each of `RATES`."""
    optimizer = make_optimizer(config)
    params = random_tree(0)
    state = optimizer.init(params)
    for step, rate in enumerate(RATES):
        updates, state = optimizer.update(gradients(step), state, params)
        params = optax.apply_updates(params, optax.tree.scale(-rate, updates))
    return {path: np.asarray(x) for path, x in flatten_dict(params).items()}


def trained_by_torch(
    make: Any, *, weight_decay: float, clip_norm: float = 0.0
) -> dict[tuple[str, ...], np.ndarray]:
    """The same in float64, by `make(groups)`; no BatchNorm decays."""
    params = {
        path: torch.tensor(np.float64(x), requires_grad=True)
        for path, x in flatten_dict(random_tree(0)).items()
    }
    spared = [p for path, p in params.items() if path[0] == "bn1"]
    others = [p for path, p in params.items() if path[0] != "bn1"]
    groups = [
        {"params": others, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    optimizer = make(groups)
    for step, rate in enumerate(RATES):
        for path, gradient in flatten_dict(gradients(step)).items():
            params[path].grad = torch.tensor(np.float64(gradient))
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(list(params.values()), clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return {path: p.detach().numpy() for path, p in params.items()}


def assert_alike(found: Any, wanted: Any) -> None:
    for path in SHAPES:
        np.testing.assert_allclose(found[path], wanted[path], rtol=2e-5, atol=2e-6, err_msg=path)


@pytest.mark.parametrize(("momentum", "alpha", "eps"), [(0.9, 0.9, None), (0.0, 0.99, 1e-8)])
def test_rmsprop_is_torchs(momentum: float, alpha: float, eps: float | None) -> None:
    found = trained(
        OptimConfig(
            optimizer="rmsprop", momentum=momentum, rmsprop_alpha=alpha, eps=eps, weight_decay=0.1
        )
    )
    wanted = trained_by_torch(
        partial(torch.optim.RMSprop, lr=1.0, alpha=alpha, momentum=momentum, eps=eps or 1e-3),
        weight_decay=0.1,
    )
    assert_alike(found, wanted)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_adamw_is_torchs(clip_norm: float) -> None:
    config = OptimConfig(
        optimizer="adamw", betas=(0.8, 0.95), weight_decay=0.3, clip_norm=clip_norm
    )
    wanted = trained_by_torch(
        partial(torch.optim.AdamW, lr=1.0, betas=(0.8, 0.95), eps=1e-8),
        weight_decay=0.3,
        clip_norm=clip_norm,
    )
    assert_alike(trained(config), wanted)


def test_clipping_is_torchs() -> None:
    """Before weight decay and momentum, by the norm over all parameters."""
    config = OptimConfig(weight_decay=0.1, momentum=0.875, nesterov=True, clip_norm=2.0)
    make = partial(torch.optim.SGD, lr=1.0, momentum=0.875, nesterov=True)
    wanted = trained_by_torch(make, weight_decay=0.1, clip_norm=2.0)
    assert_alike(trained(config), wanted)


def test_lamb_is_the_papers() -> None:
    """You et al. 2020, algorithm 2: Adam's update plus decay, as long as the weights are."""
    wanted = {path: np.float64(x) for path, x in flatten_dict(random_tree(0)).items()}
    m = {path: np.zeros(shape) for path, shape in SHAPES.items()}
    v = {path: np.zeros(shape) for path, shape in SHAPES.items()}
    for step, rate in enumerate(RATES, start=1):
        for path, gradient in flatten_dict(gradients(step - 1)).items():
            g = np.float64(gradient)
            m[path] = 0.9 * m[path] + 0.1 * g
            v[path] = 0.999 * v[path] + 0.001 * g**2
            update = m[path] / (1 - 0.9**step) / (np.sqrt(v[path] / (1 - 0.999**step)) + 1e-6)
            update += (0.05 if path[0] != "bn1" else 0.0) * wanted[path]
            ratio = np.linalg.norm(wanted[path]) / np.linalg.norm(update)
            wanted[path] = wanted[path] - rate * ratio * update
    assert_alike(trained(OptimConfig(optimizer="lamb", weight_decay=0.05)), wanted)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_the_arrays_of_sgd_keep_their_names(clip_norm: float) -> None:
    """Older checkpoints have them; clipping can be switched on or off at a resume."""
    state = make_optimizer(OptimConfig(clip_norm=clip_norm)).init(random_tree(0))
    assert set(by_name(state)) == {f"1/trace/{'/'.join(path)}" for path in SHAPES}


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

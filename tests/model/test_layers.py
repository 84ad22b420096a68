"""Layers against PyTorch's, and their initial values against the formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seresnext_jax.model.layers import BatchNorm, Conv, Dense, SqueezeExcite

SHAPE = (6, 5, 4, 3)


def batch_norm(
    x: np.ndarray, *, group_size: int = 0, state: Any = None
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Output, gradient of Σ cos(y) and updated statistics, in training."""
    module = BatchNorm(group_size)
    variables = state or module.init(jax.random.key(0), x, train=False)

    def forward(x: jax.Array) -> Any:
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    y, vjp, updated = jax.vjp(forward, jnp.asarray(x), has_aux=True)
    return np.asarray(y), np.asarray(vjp(jnp.cos(y))[0]), updated["batch_stats"]


def torch_batch_norm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    module = torch.nn.BatchNorm2d(x.shape[-1]).double().train()
    tx = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    y = module(tx)
    y.backward(torch.cos(y.detach()))
    assert tx.grad is not None and module.running_mean is not None
    assert module.running_var is not None
    return (
        y.detach().permute(0, 2, 3, 1).numpy(),
        tx.grad.permute(0, 2, 3, 1).numpy(),
        module.running_mean.numpy(),
        module.running_var.numpy(),
    )


@pytest.mark.parametrize(("mean", "tolerance"), [(0.0, 1e-5), (10.0, 2e-4)])
def test_batch_norm_in_training_is_pytorchs(mean: float, tolerance: float) -> None:
    x = np.random.default_rng(0).normal(mean, 1, SHAPE).astype(np.float32)
    y, gradient, stats = batch_norm(x)
    wanted_y, wanted_gradient, running_mean, running_var = torch_batch_norm(x)
    np.testing.assert_allclose(y, wanted_y, atol=tolerance)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=tolerance)
    np.testing.assert_allclose(stats["mean"], running_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], running_var, rtol=tolerance)


def test_a_large_mean_costs_no_accuracy_once_the_running_mean_knows_it() -> None:
    x = np.random.default_rng(0).normal(100, 1, SHAPE).astype(np.float32)
    state = {
        "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
        "batch_stats": {"mean": jnp.full(3, 100.0), "var": jnp.ones(3)},
    }
    y, _, _ = batch_norm(x, state=state)
    np.testing.assert_allclose(y, torch_batch_norm(x)[0], atol=2e-5)


def test_groups_are_normalised_apart_and_their_statistics_averaged() -> None:
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    y, _, stats = batch_norm(x, group_size=2)
    parts = [torch_batch_norm(part) for part in np.split(x, 3)]
    np.testing.assert_allclose(y, np.concatenate([p[0] for p in parts]), atol=1e-5)
    np.testing.assert_allclose(stats["mean"], np.mean([p[2] for p in parts], axis=0), atol=1e-6)
    np.testing.assert_allclose(stats["var"], np.mean([p[3] for p in parts], axis=0), rtol=1e-5)


def test_batch_norm_in_evaluation_uses_the_running_statistics() -> None:
    x = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    mean, var = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    scale, bias = np.array([0.5, 1.0, 2.0]), np.array([0.1, 0.2, 0.3])
    variables = {
        "params": {"scale": jnp.float32(scale), "bias": jnp.float32(bias)},
        "batch_stats": {"mean": jnp.float32(mean), "var": jnp.float32(var)},
    }
    y = BatchNorm().apply(variables, x, train=False)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=1e-5)


def test_half_precision_is_normalised_with_float32_statistics() -> None:
    x = np.random.default_rng(3).normal(300, 10, (8, 16, 16, 3)).astype(np.float16)
    y, _, stats = batch_norm(x)
    assert y.dtype == np.float16 and stats["mean"].dtype == jnp.float32
    np.testing.assert_allclose(y, torch_batch_norm(x.astype(np.float64))[0], atol=4e-3)


def test_one_value_per_channel_is_refused_in_training() -> None:
    with pytest.raises(ValueError, match="more than one value"):
        batch_norm(np.ones((1, 1, 1, 3), np.float32))


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 8 * 9), ("fan_out", 64 * 9)])
def test_convolutions_start_kaiming_normal_without_truncation(mode: Any, fan: int) -> None:
    module = Conv(64, 3, groups=4, init_mode=mode)
    kernel = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))["params"]["kernel"]
    std = np.sqrt(2 / fan)
    assert kernel.shape == (3, 3, 8, 64)
    assert np.std(kernel) == pytest.approx(std, rel=0.05)
    assert np.abs(kernel).max() > 2.5 * std


def test_linear_layers_start_uniform_bias_included() -> None:
    params = Dense(400).init(jax.random.key(0), jnp.zeros((1, 16)))["params"]
    for values in params.values():
        assert 0.24 < np.abs(values).max() <= 0.25
        assert np.std(values) == pytest.approx(0.25 / np.sqrt(3), rel=0.1)


def test_squeeze_excite_is_its_formula() -> None:
    x = np.random.default_rng(4).normal(size=SHAPE).astype(np.float32)
    module = SqueezeExcite(2)
    pooled = x.mean((1, 2))
    variables = module.init(jax.random.key(1), pooled)
    p = jax.tree.map(np.asarray, variables["params"])
    hidden = np.maximum(pooled @ p["squeeze"]["kernel"] + p["squeeze"]["bias"], 0)
    gate = 1 / (1 + np.exp(-(hidden @ p["expand"]["kernel"] + p["expand"]["bias"])))
    np.testing.assert_allclose(module.apply(variables, pooled), gate, atol=1e-6)

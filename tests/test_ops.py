"""Every formulation of an operation against the plain one, and against PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seresnext_jax.ops.convolution import conv2d
from seresnext_jax.ops.fusion import computed_once, relu_once
from seresnext_jax.ops.pooling import max_pool, max_pool_reference
from seresnext_jax.ops.reference import conv2d_reference

CASES = [
    # (kernel size, stride, padding, groups, channels in, channels out, height, width)
    (7, 2, 3, 1, 3, 8, 15, 18),
    (3, 1, 1, 1, 3, 8, 9, 7),
    (5, 3, 2, 1, 4, 8, 11, 9),
    (3, 1, 1, 8, 32, 32, 9, 7),
    (3, 2, 1, 8, 32, 32, 8, 8),
    (3, 2, 1, 8, 32, 32, 9, 7),
    (3, 2, 1, 4, 64, 128, 6, 7),
    (3, 1, 1, 32, 32, 32, 5, 5),
    (3, 2, 1, 2, 96, 64, 7, 7),
    (1, 1, 0, 1, 12, 20, 6, 5),
    (1, 2, 0, 1, 12, 20, 7, 6),
]


def arrays(case: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    size, _, _, groups, c_in, c_out, height, width = case
    draw = np.random.default_rng(sum(case)).normal
    x = draw(size=(2, height, width, c_in)).astype(np.float32)
    return x, draw(size=(size, size, c_in // groups, c_out)).astype(np.float32)


def value_and_gradients(function: Any, x: np.ndarray, kernel: np.ndarray) -> list[np.ndarray]:
    y, vjp = jax.vjp(function, jnp.asarray(x), jnp.asarray(kernel))
    return [np.asarray(a) for a in (y, *vjp(jnp.cos(y)))]


@pytest.mark.parametrize("case", CASES)
def test_convolution_is_pytorchs_and_the_plain_one(case: tuple[int, ...]) -> None:
    _, stride, padding, groups, *_ = case
    options = {"stride": stride, "padding": padding, "groups": groups}
    x, kernel = arrays(case)
    found = value_and_gradients(lambda a, b: conv2d(a, b, **options), x, kernel)
    undifferentiated = conv2d(jnp.asarray(x), jnp.asarray(kernel), **options)
    plain = value_and_gradients(lambda a, b: conv2d_reference(a, b, **options), x, kernel)

    tx = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    tk = torch.tensor(kernel.transpose(3, 2, 0, 1), dtype=torch.float64, requires_grad=True)
    y = F.conv2d(tx, tk, **options)
    y.backward(torch.cos(y.detach()))
    assert tx.grad is not None and tk.grad is not None
    wanted = [
        y.detach().permute(0, 2, 3, 1).numpy(),
        tx.grad.permute(0, 2, 3, 1).numpy(),
        tk.grad.permute(2, 3, 1, 0).numpy(),
    ]
    scale = np.abs(wanted[0]).max()
    np.testing.assert_allclose(undifferentiated, wanted[0], rtol=0, atol=2e-5 * scale)
    for ours, xla, theirs in zip(found, plain, wanted, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * scale)
        np.testing.assert_allclose(xla, theirs, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("shape", [(2, 8, 8, 4), (1, 7, 9, 3), (2, 1, 1, 5)])
def test_max_pool_is_pytorchs_and_the_plain_one(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    y = F.max_pool2d(tx, 3, 2, 1)
    y.backward(torch.cos(y.detach()))
    assert tx.grad is not None
    for pool in (max_pool, max_pool_reference):
        found, vjp = jax.vjp(pool, jnp.asarray(x))
        np.testing.assert_array_equal(found, y.detach().permute(0, 2, 3, 1).numpy())
        (gradient,) = vjp(jnp.cos(found))
        np.testing.assert_allclose(gradient, tx.grad.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_relu_once_is_relu_and_keeps_nan() -> None:
    x = jnp.array([[-1.0, 0.0, 2.0]])
    value, vjp = jax.vjp(relu_once, x)
    np.testing.assert_array_equal(value, [[0.0, 0.0, 2.0]])
    np.testing.assert_array_equal(vjp(jnp.ones_like(x))[0], [[0.0, 0.0, 1.0]])
    # One image that overflows leaves the others as they are.
    np.testing.assert_array_equal(relu_once(x.at[0, 0].set(jnp.nan)), [[np.nan, 0.0, 2.0]])
    np.testing.assert_array_equal(relu_once(-x.at[0, 0].set(jnp.nan)), [[np.nan, 0.0, 0.0]])


def test_computed_once_is_the_identity() -> None:
    x = jnp.array([[-1.0, 0.0, jnp.inf]])
    np.testing.assert_array_equal(computed_once(x), x)
    assert np.isnan(computed_once(x.at[0, 0].set(jnp.nan))).all()

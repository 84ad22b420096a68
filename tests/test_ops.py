"""Every formulation of an operation against the plain one, and against PyTorch."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax.sharding import PartitionSpec as P

from seresnext_jax.ops.convolution import conv2d
from seresnext_jax.ops.fusion import computed_once, relu_once
from seresnext_jax.ops.grouped_blocks import grouped_in_blocks
from seresnext_jax.ops.grouped_native import grouped_by_kernel, is_available, is_supported
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
    (3, 1, 1, 8, 32, 32, 1, 3),
    (3, 1, 1, 8, 64, 64, 5, 13),
    (3, 2, 1, 4, 64, 64, 8, 9),
    (3, 1, 1, 2, 64, 64, 7, 6),
    (3, 2, 1, 3, 96, 96, 6, 11),
    (3, 2, 1, 2, 128, 128, 5, 4),
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


def formulations(case: tuple[int, ...]) -> list[Any]:
    """Those that compute this convolution, each a function of x and kernel."""
    _, stride, padding, groups, *_ = case
    options = {"stride": stride, "padding": padding, "groups": groups}
    found = [partial(conv2d, **options), partial(conv2d_reference, **options)]
    if groups > 1:
        found.append(lambda x, kernel: grouped_in_blocks(x, kernel, stride, padding, groups))
    return found


@pytest.mark.parametrize("case", CASES)
def test_convolution_is_pytorchs(case: tuple[int, ...]) -> None:
    _, stride, padding, groups, *_ = case
    x, kernel = arrays(case)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    tk = torch.tensor(kernel.transpose(3, 2, 0, 1), dtype=torch.float64, requires_grad=True)
    y = F.conv2d(tx, tk, stride=stride, padding=padding, groups=groups)
    y.backward(torch.cos(y.detach()))
    assert tx.grad is not None and tk.grad is not None
    wanted = [
        y.detach().permute(0, 2, 3, 1).numpy(),
        tx.grad.permute(0, 2, 3, 1).numpy(),
        tk.grad.permute(2, 3, 1, 0).numpy(),
    ]
    for convolve in formulations(case):
        undifferentiated = convolve(jnp.asarray(x), jnp.asarray(kernel))
        found = [undifferentiated, *value_and_gradients(convolve, x, kernel)]
        for ours, theirs in zip(found, [wanted[0], *wanted], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_channels_that_do_not_fit_are_refused() -> None:
    x, kernel = jnp.ones((1, 2, 2, 64)), jnp.ones((3, 3, 4, 32))
    for function in formulations((3, 1, 1, 8, 64, 32, 2, 2)):
        with pytest.raises(ValueError):
            function(x, kernel)
    with pytest.raises(ValueError):
        grouped_by_kernel(x, kernel, 1)


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"dtype": jnp.bfloat16}, False),
        ({"padding": 0}, False),
        ({"out": 64}, False),  # not as many as in
        ({"size": 5}, False),
        ({"groups": 4, "channels": 96, "out": 96}, False),  # 24 a group
        ({"groups": 3, "channels": 48, "out": 48}, False),  # not whole slabs
    ],
)
def test_what_the_kernel_takes(change: dict[str, Any], taken: bool) -> None:
    of = {"dtype": jnp.float32, "padding": 1, "size": 3, "groups": 8, "channels": 32, "out": 32}
    of |= change
    x = jnp.ones((1, 8, 8, of["channels"]), of["dtype"])
    kernel = jnp.ones(
        (of["size"], of["size"], of["channels"] // of["groups"], of["out"]), of["dtype"]
    )
    assert is_supported(x, kernel, of["padding"], of["groups"]) is taken
    y = conv2d(x, kernel, padding=of["padding"], groups=of["groups"])
    plain = conv2d_reference(x, kernel, padding=of["padding"], groups=of["groups"])
    np.testing.assert_array_equal(y, plain)  # sums of ones, exact in any order


def test_the_kernel_is_used_here() -> None:
    """Without a C++ compiler all else passes, by the slower formulation."""
    assert is_available()


def test_the_kernel_on_several_devices_at_once_and_under_vmap() -> None:
    """Its devices share the threads; the bits are those of one alone."""
    case = (3, 2, 1, 4, 64, 64, 9, 8)
    x, kernel = (jnp.asarray(a) for a in arrays(case))
    x = jnp.stack([x, 2 * x, 3 * x, 4 * x])

    def gradients(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
        y, vjp = jax.vjp(lambda x, k: conv2d(x, k, stride=2, padding=1, groups=4), x, kernel)
        return y, *vjp(jnp.cos(y))

    alone = [jnp.stack(parts) for parts in zip(*(gradients(a, kernel) for a in x), strict=True)]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    together = jax.jit(
        jax.shard_map(
            lambda x, kernel: jax.tree.map(lambda a: a[None], gradients(x[0], kernel[0])),
            mesh=mesh,
            in_specs=(P("data"), P("data")),
            out_specs=P("data"),
        )
    )(x, jnp.stack(4 * [kernel]))
    mapped = jax.vmap(gradients, (0, None))(x, kernel)
    for one, many, vmapped in zip(alone, together, mapped, strict=True):
        np.testing.assert_array_equal(one, many)
        np.testing.assert_array_equal(one, vmapped)


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

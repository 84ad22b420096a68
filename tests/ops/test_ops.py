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

from seresnext_jax.ops import layout
from seresnext_jax.ops.activation import inner_relu, output_relu
from seresnext_jax.ops.convolution import conv2d
from seresnext_jax.ops.cpu.fusion import computed_once, relu_once
from seresnext_jax.ops.cpu.grouped_blocks import grouped_in_blocks
from seresnext_jax.ops.cpu.grouped_native import grouped_by_kernel, is_available, is_supported
from seresnext_jax.ops.gpu.activation import relu_from_output
from seresnext_jax.ops.gpu.convolution import conv2d_on_gpu
from seresnext_jax.ops.gpu.pooling import max_pool_on_gpu
from seresnext_jax.ops.normalization import (
    batch_statistics,
    scale_and_shift,
    scale_shift_and_add,
)
from seresnext_jax.ops.pooling import max_pool
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
    found = [partial(f, **options) for f in (conv2d, conv2d_on_gpu, conv2d_reference)]
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


def torch_max_pool(x: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pooled x, and the gradient of x from that of the result."""
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    y = F.max_pool2d(tx, 3, 2, 1)
    y.backward(torch.from_numpy(gradient.transpose(0, 3, 1, 2).copy()))
    assert tx.grad is not None
    return y.detach().permute(0, 2, 3, 1).numpy(), tx.grad.permute(0, 2, 3, 1).numpy()


def half(shape: tuple[int, ...]) -> tuple[int, ...]:
    n, h, w, c = shape
    return n, (h + 1) // 2, (w + 1) // 2, c


@pytest.mark.parametrize("shape", [(2, 8, 8, 4), (1, 7, 9, 3), (2, 1, 1, 5), (1, 2, 5, 2)])
def test_max_pool_is_pytorchs(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0).normal
    x, gradient = draw(size=shape).astype(np.float32), draw(size=half(shape)).astype(np.float32)
    wanted, wanted_gradient = torch_max_pool(x, gradient)
    for pool in (max_pool, max_pool_on_gpu):
        np.testing.assert_array_equal(pool(jnp.asarray(x)), wanted)
        found, vjp = jax.vjp(pool, jnp.asarray(x))
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_allclose(vjp(jnp.asarray(gradient))[0], wanted_gradient, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_first_of_equal_values_and_a_nan_win_on_a_gpu_as_in_pytorch(dtype: str) -> None:
    rng, shape = np.random.default_rng(0), (2, 9, 8, 4)
    x = rng.integers(0, 3, shape).astype(np.float32)  # whole numbers are exact in each type
    x[1, 3:5, 2, 0] = np.nan
    gradient = rng.integers(-9, 9, half(shape)).astype(np.float32)
    wanted, wanted_gradient = torch_max_pool(x, gradient)
    found, vjp = jax.vjp(max_pool_on_gpu, jnp.asarray(x, dtype))
    np.testing.assert_array_equal(np.asarray(found, np.float32), wanted)
    np.testing.assert_array_equal(vjp(jnp.asarray(gradient, dtype))[0], wanted_gradient)


RELUS = [inner_relu, output_relu, relu_once, relu_from_output]


@pytest.mark.parametrize("relu", RELUS)
def test_relu_is_relu_and_keeps_nan(relu: Any) -> None:
    x = jnp.array([[-1.0, 0.0, 2.0]])
    np.testing.assert_array_equal(relu(x), [[0.0, 0.0, 2.0]])
    value, vjp = jax.vjp(relu, x)
    np.testing.assert_array_equal(value, [[0.0, 0.0, 2.0]])
    np.testing.assert_array_equal(vjp(jnp.ones_like(x))[0], [[0.0, 0.0, 1.0]])
    # One image that overflows leaves the others as they are.
    np.testing.assert_array_equal(relu(x.at[0, 0].set(jnp.nan)), [[np.nan, 0.0, 2.0]])
    np.testing.assert_array_equal(relu(-x.at[0, 0].set(jnp.nan)), [[np.nan, 0.0, 0.0]])


def test_computed_once_is_the_identity() -> None:
    x = jnp.array([[-1.0, 0.0, jnp.inf]])
    np.testing.assert_array_equal(computed_once(x), x)
    assert np.isnan(computed_once(x.at[0, 0].set(jnp.nan))).all()


def test_statistics_of_images_and_groups_are_numpys() -> None:
    x = np.random.default_rng(1).normal(3, 2, (6, 4, 5, 3)).astype(np.float32)
    images, mean, var = batch_statistics(jnp.asarray(x), jnp.full(3, 2.5), groups=3)
    np.testing.assert_allclose(images, x.mean((1, 2)), rtol=1e-5)
    groups = x.reshape(3, -1, 3)
    np.testing.assert_allclose(mean, groups.mean(1), rtol=1e-5)
    np.testing.assert_allclose(var, groups.var(1), rtol=1e-4)


def test_scaling_rounds_once() -> None:
    rng = np.random.default_rng(2)
    x, residual = (rng.normal(size=(4, 2, 3, 5)).astype(np.float16) for _ in range(2))
    slope, offset = (rng.normal(size=(2, 5)).astype(np.float32) for _ in range(2))
    by_image = np.repeat(slope, 2, 0)[:, None, None], np.repeat(offset, 2, 0)[:, None, None]
    wanted = x.astype(np.float64) * by_image[0] + by_image[1]
    found = scale_and_shift(jnp.asarray(x), jnp.asarray(slope), jnp.asarray(offset))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, wanted, rtol=2**-11, atol=1e-6)
    factors = (jnp.repeat(jnp.asarray(a), 2, axis=0) for a in (slope, offset))
    found = scale_shift_and_add(jnp.asarray(x), *factors, jnp.asarray(residual))
    np.testing.assert_allclose(found, wanted + residual, rtol=2**-11, atol=1e-6)


def lowered_for(platform: str, function: Any, *shapes: tuple[int, ...]) -> str:
    """The program that a function and its gradient become on a platform."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    gradient = jax.grad(lambda *xs: jnp.sum(function(*xs)), tuple(range(len(shapes))))
    return jax.jit(gradient).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


def test_the_platform_that_is_lowered_for_decides() -> None:
    """Not the process's default backend, which is a CPU in both."""
    convolve = partial(conv2d, padding=1, groups=8)
    shapes = (2, 8, 8, 32), (3, 3, 4, 32)
    cpu, gpu = (lowered_for(platform, convolve, *shapes) for platform in ("cpu", "cuda"))
    assert "seresnext_jax.grouped_kernel_gradient" in cpu
    assert "custom_call" not in gpu and "stablehlo.convolution" in gpu
    for function in (max_pool, inner_relu, output_relu):
        cpu, gpu = (lowered_for(platform, function, (2, 8, 8, 4)) for platform in ("cpu", "cuda"))
        assert cpu != gpu and "reduce_window" not in gpu
    assert "optimization_barrier" in gpu


def test_an_overflow_between_merged_groups_is_nobodys() -> None:
    """Group 0 has large inputs and small gradients, the others the opposite."""
    x = np.full((2, 16, 16, 16), 0.01, np.float16)
    gradient = np.full((2, 16, 16, 16), 300, np.float16)
    x[..., :4], gradient[..., :4] = 300, 0.01
    kernel = jnp.zeros((3, 3, 4, 16), jnp.float16)
    convolve = partial(conv2d_on_gpu, jnp.asarray(x), stride=1, padding=1, groups=4)
    _, vjp = jax.vjp(lambda kernel: convolve(kernel), kernel)
    assert np.isfinite(vjp(jnp.asarray(gradient))[0]).all()


@pytest.mark.parametrize(("platform", "order"), [("gpu", (3, 0, 1, 2)), ("cpu", (0, 1, 2, 3))])
def test_kernels_are_stored_as_the_platform_reads_them(
    platform: str, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Devices:
        device_set = {type("Device", (), {"platform": platform})}

    formats: dict[int, tuple[int, ...]] = {}
    monkeypatch.setattr(layout, "Format", lambda layout, _: layout.major_to_minor)
    for x in (np.zeros((3, 3, 4, 8)), np.zeros((4, 8)), np.zeros(8)):
        formats[x.ndim] = layout.inference_format(x, Devices())  # type: ignore[arg-type]
    assert formats == {4: order, 2: (0, 1), 1: (0,)}

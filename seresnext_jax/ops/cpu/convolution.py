"""2-D convolution on a CPU: matrix products, and a C++ kernel or dense blocks for groups."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from seresnext_jax.ops.cpu.grouped_blocks import grouped_in_blocks
from seresnext_jax.ops.cpu.grouped_native import grouped_by_kernel, is_available, is_supported
from seresnext_jax.ops.reference import conv2d_reference

_FEW_CHANNELS = 4
"""A convolution of at most this many input channels is the network's first, on images."""


def conv2d_on_cpu(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int, portable: bool
) -> jax.Array:
    """`ops.convolution.conv2d` for XLA's CPU backend."""
    if kernel.shape[:2] == (1, 1) and groups == 1 and padding == 0:
        return _pointwise(x, kernel, stride)
    if groups > 1:
        # With a GPU in the process this is traced but rarely runs, so don't start a compiler.
        wanted = jax.default_backend() == "cpu" and not portable
        if wanted and is_supported(x, kernel, padding, groups) and is_available():
            return grouped_by_kernel(x, kernel, stride)
        return grouped_in_blocks(x, kernel, stride, padding, groups)
    if x.shape[-1] <= _FEW_CHANNELS:
        return _of_few_channels(x, kernel, stride, padding)
    return conv2d_reference(x, kernel, stride=stride, padding=padding, groups=groups)


def _pointwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A 1×1 convolution as a matrix product over the channels.

    The pixels are flattened to one axis for `_product`, which has a fast kernel gradient.
    """
    x = x[:, ::stride, ::stride]
    pixels = _product(x.reshape(-1, x.shape[-1]), kernel[0, 0])
    return pixels.reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(P, C) @ (C, O), with x transposed in memory before the product of the kernel gradient.

    XLA's CPU backend has a faster library for plain products than for products of transposed
    arrays; that saves more than the transpose costs.
    """
    return jnp.dot(x, kernel)


def _product_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.dot(x, kernel), (x, kernel)


def _product_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return jnp.dot(gradient, kernel.T), jnp.dot(lax.optimization_barrier(x.T), gradient)


_product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _of_few_channels(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """The network's first convolution, with its kernel gradient computed as a matrix product.

    XLA's CPU backend computes that gradient as a convolution whose window is the whole image, which
    is twenty times slower.
    """
    return conv2d_reference(x, kernel, stride=stride, padding=padding)


def _few_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _of_few_channels(x, kernel, stride, padding), (x, kernel)


def _few_backward(
    stride: int, padding: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    convolve = partial(conv2d_reference, kernel=kernel, stride=stride, padding=padding)
    (x_gradient,) = jax.linear_transpose(convolve, x)(gradient)
    kh, kw, channels, out = kernel.shape
    taps_h, taps_w = -(-kh // stride), -(-kw // stride)
    patches = _patches(x, (taps_h, taps_w), gradient.shape[1:3], stride, padding)
    product = jnp.dot(patches.T, gradient.reshape(-1, out))
    # (row of cells, column of cells, row in the cell, column in the cell, C, O)
    cells = product.reshape(taps_h, taps_w, stride, stride, channels, out)
    taps = cells.transpose(0, 2, 1, 3, 4, 5).reshape(
        taps_h * stride, taps_w * stride, channels, out
    )
    return x_gradient, taps[:kh, :kw]


_of_few_channels.defvjp(_few_forward, _few_backward)


def _patches(
    x: jax.Array, taps: tuple[int, int], size: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    """The input patch of each output pixel: (N, H, W, C) → (N · out H · out W, taps · stride² · C).

    Cells of stride × stride pixels become channels first, so that a tap is a slice without stride.
    """
    n, h, w, c = x.shape
    edges = [(0, 0)]
    for length, count, out in zip((h, w), taps, size, strict=True):
        whole = (out + count - 1) * stride
        edges.append((padding, whole - length - padding))
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(*edge, 0) for edge in [*edges, (0, 0)]])
    rows, columns = padded.shape[1] // stride, padded.shape[2] // stride
    cells = padded.reshape(n, rows, stride, columns, stride, c).transpose(0, 1, 3, 2, 4, 5)
    cells = cells.reshape(n, rows, columns, stride * stride * c)
    seen = [
        cells[:, i : i + size[0], j : j + size[1]] for i in range(taps[0]) for j in range(taps[1])
    ]
    return jnp.concatenate(seen, axis=-1).reshape(n * size[0] * size[1], -1)

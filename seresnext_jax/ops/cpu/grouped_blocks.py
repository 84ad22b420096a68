"""Grouped convolution on a CPU with XLA's operations, where grouped_native.py can't be used.

XLA's CPU backend has no fast gradient of its own grouped convolution. So neighbouring groups are
merged into blocks: each is an ordinary convolution with a block-diagonal kernel. The gradients are
written by hand, so that the kernels of all blocks are built, flipped and split in one operation;
with autodiff, the small transposes of each block cost more than its convolutions.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from seresnext_jax.ops.cpu.fusion import computed_once
from seresnext_jax.ops.reference import conv2d_reference

_BLOCK_WIDTH = 16
"""Input channels of a block; a wider group is a block of its own (docs/performance-cpu.md)."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def grouped_in_blocks(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int
) -> jax.Array:
    """`conv2d` of x (N, H, W, C) and a kernel (kh, kw, C / groups, O) in `groups` groups.

    The blocks are unrolled. When differentiated, the forward pass and the input gradient are loops
    instead: 4 % slower, but compiled in a fifth of the time.
    """
    blocks = _dense_blocks(kernel, groups, _merged_groups(kernel.shape[2], groups))
    pieces = jnp.split(x, len(blocks), axis=-1)
    outputs = [
        conv2d_reference(piece, block, stride=stride, padding=padding)
        for piece, block in zip(pieces, blocks, strict=True)
    ]
    return jnp.concatenate(outputs, axis=-1)


def _grouped_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    convolve = partial(conv2d_reference, stride=stride, padding=padding)
    blocks = _dense_blocks(kernel, groups, _merged_groups(kernel.shape[2], groups))
    return _join_blocks(convolve, x, blocks), (x, kernel)


def _grouped_backward(
    stride: int,
    padding: int,
    groups: int,
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    gradient = computed_once(gradient)
    merged, size = _merged_groups(kernel.shape[2], groups), (x.shape[1], x.shape[2])
    x_gradient = _join_blocks(
        lambda piece, block: _spread(piece, block, stride, padding, size),
        gradient,
        _dense_blocks(kernel, groups, merged)[:, ::-1, ::-1].swapaxes(3, 4),
    )

    merged = _merged_groups(kernel.shape[2], groups, at_least=2)
    block = _dense_blocks(kernel, groups, merged)[0]

    def kernel_gradient(piece: jax.Array, piece_gradient: jax.Array) -> jax.Array:
        convolve = partial(conv2d_reference, piece, stride=stride, padding=padding)
        (result,) = jax.linear_transpose(convolve, block)(piece_gradient)
        return result

    count = groups // merged
    pieces = zip(jnp.split(x, count, axis=-1), jnp.split(gradient, count, axis=-1), strict=True)
    dense = lax.optimization_barrier(jnp.stack([kernel_gradient(*pair) for pair in pieces]))
    return x_gradient, _diagonal(dense, kernel.shape, groups, merged)


grouped_in_blocks.defvjp(_grouped_forward, _grouped_backward)


def _join_blocks(
    function: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, blocks: jax.Array
) -> jax.Array:
    """Apply `function` to each block of channels of x and its kernel, and join the results.

    A loop, because unrolled slices would be thousands of kernels to compile.
    """
    count = len(blocks)

    def one(index: jax.Array) -> jax.Array:
        return function(_block(x, index, count), blocks[index])

    shape = jax.eval_shape(one, 0)
    joined = lax.full_like(x, 0, shape=(*shape.shape[:-1], count * shape.shape[-1]))

    def body(index: jax.Array, joined: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(joined, one(index), index * shape.shape[-1], axis=3)

    return lax.fori_loop(0, count, body, joined)


def _block(x: jax.Array, index: jax.Array, count: int) -> jax.Array:
    """One of the `count` blocks of x's channels."""
    width = x.shape[-1] // count
    return lax.dynamic_slice_in_dim(x, index * width, width, axis=3)


def _spread(
    gradient: jax.Array, flipped: jax.Array, stride: int, padding: int, size: tuple[int, int]
) -> jax.Array:
    """The gradient of a convolution's input of `size` (H, W), computed with the flipped kernel."""
    edges = []
    for length, taps, out in zip(size, flipped.shape[:2], gradient.shape[1:3], strict=True):
        before = taps - 1 - padding
        edges.append((before, length + taps - 1 - ((out - 1) * stride + 1) - before))
    return lax.conv_general_dilated(
        gradient,
        flipped,
        window_strides=(1, 1),
        padding=edges,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _merged_groups(group_in: int, groups: int, at_least: int = 1) -> int:
    """How many neighbouring groups share a block; a divisor of `groups`."""
    merged = max(at_least, _BLOCK_WIDTH // group_in)
    while groups % merged:
        merged -= 1
    return merged


def _dense_blocks(kernel: jax.Array, groups: int, merged: int) -> jax.Array:
    """(kh, kw, C / groups, O) → one block-diagonal kernel per block, (B, kh, kw, C / B, O / B)."""
    kh, kw, group_in, out = kernel.shape
    blocks, group_out = groups // merged, out // groups
    split = kernel.reshape(kh, kw, group_in, blocks, merged, group_out)
    dense = jnp.einsum("hwibmo,nm->bhwnimo", split, jnp.eye(merged, dtype=kernel.dtype))
    return dense.reshape(blocks, kh, kw, merged * group_in, merged * group_out)


def _diagonal(dense: jax.Array, shape: tuple[int, ...], groups: int, merged: int) -> jax.Array:
    """The inverse of `_dense_blocks`; drops what is off the diagonal, which is not a parameter."""
    kh, kw, group_in, out = shape
    split = dense.reshape(-1, kh, kw, merged, group_in, merged, out // groups)
    diagonal = jnp.eye(merged, dtype=dense.dtype)
    return jnp.einsum("bhwnimo,nm->hwibmo", split, diagonal).reshape(shape)

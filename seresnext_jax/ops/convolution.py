"""2-D convolution in the formulation that is fastest on the backend at hand.

Arrays are NHWC, kernels HWIO with I = channels / groups, whatever the formulation: the choice never
shows in the parameters. `conv2d_reference` is the plain XLA convolution and the specification.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from seresnext_jax.ops.fusion import computed_once

_INFERENCE_WIDTH, _TRAINING_WIDTH = 16, 32
"""Channels of one dense block of a grouped convolution on the CPU (docs/performance.md)."""


def conv2d(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """Convolve with symmetric zero padding, as `torch.nn.functional.conv2d` does.

    Args:
      x: (N, H, W, C).
      kernel: (kh, kw, C / groups, O), of x's dtype.

    Returns:
      (N, (H + 2 padding - kh) // stride + 1, likewise, O), of x's dtype.
    """
    if kernel.shape[:2] == (1, 1) and groups == 1 and padding == 0:
        return _pointwise(x, kernel, stride)
    if groups > 1 and jax.default_backend() == "cpu":
        return _grouped_in_blocks(x, kernel, stride, padding, groups)
    return conv2d_reference(x, kernel, stride=stride, padding=padding, groups=groups)


def conv2d_reference(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """The same convolution as one XLA operation."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _pointwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A 1×1 convolution as a matrix product over the channels.

    Two dimensions, not an einsum over four: the kernel's gradient of the latter transposes the
    activations.
    """
    x = x[:, ::stride, ::stride]
    pixels = jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0])
    return pixels.reshape(*x.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _grouped_in_blocks(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int
) -> jax.Array:
    """A grouped convolution as dense convolutions of neighbouring groups.

    XLA's CPU backend has no fast gradient of a grouped convolution. Each block of 16 or
    32 channels gets an ordinary convolution whose kernel is block-diagonal over its groups. The
    gradients are written out so that the blocks' kernels are made, turned and taken apart all at
    once: left to autodiff, each block's small transposes cost more than its convolutions.
    """
    return _convolve_blocks(x, _dense_blocks(kernel, groups, _INFERENCE_WIDTH), stride, padding)


def _grouped_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    blocks = _dense_blocks(kernel, groups, _TRAINING_WIDTH)
    return _convolve_blocks(x, blocks, stride, padding), (x, kernel)


def _grouped_backward(
    stride: int,
    padding: int,
    groups: int,
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    gradient = computed_once(gradient)
    blocks = _dense_blocks(kernel, groups, _TRAINING_WIDTH)
    size = (x.shape[1], x.shape[2])
    turned = lax.optimization_barrier(blocks[:, ::-1, ::-1].swapaxes(3, 4))
    x_gradient = _by_block(
        lambda piece, block: _spread(piece, block, stride, padding, size), gradient, turned
    )

    def kernel_gradient(piece: jax.Array, piece_gradient: jax.Array) -> jax.Array:
        def convolve(block: jax.Array) -> jax.Array:
            return conv2d_reference(piece, block, stride=stride, padding=padding)

        (result,) = jax.linear_transpose(convolve, blocks[0])(piece_gradient)
        return result

    pieces = zip(
        jnp.split(x, len(blocks), axis=-1), jnp.split(gradient, len(blocks), axis=-1), strict=True
    )
    dense = lax.optimization_barrier(jnp.stack([kernel_gradient(*pair) for pair in pieces]))
    return x_gradient, _diagonal(dense, kernel.shape, groups, _TRAINING_WIDTH)


_grouped_in_blocks.defvjp(_grouped_forward, _grouped_backward)


def _convolve_blocks(x: jax.Array, blocks: jax.Array, stride: int, padding: int) -> jax.Array:
    return _by_block(
        lambda piece, block: conv2d_reference(piece, block, stride=stride, padding=padding),
        x,
        blocks,
    )


def _by_block(
    function: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, blocks: jax.Array
) -> jax.Array:
    """Apply `function` to each block of channels of x and its kernel, and join the results."""
    pieces = jnp.split(x, len(blocks), axis=-1)
    return jnp.concatenate([function(p, blocks[i]) for i, p in enumerate(pieces)], axis=-1)


def _spread(
    gradient: jax.Array, turned: jax.Array, stride: int, padding: int, size: tuple[int, int]
) -> jax.Array:
    """The gradient of a convolution's input of `size` (H, W), from its turned kernel."""
    edges = []
    for length, taps, out in zip(size, turned.shape[:2], gradient.shape[1:3], strict=True):
        before = taps - 1 - padding
        edges.append((before, length + taps - 1 - ((out - 1) * stride + 1) - before))
    return lax.conv_general_dilated(
        gradient,
        turned,
        window_strides=(1, 1),
        padding=edges,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _merged_groups(group_in: int, groups: int, width: int) -> int:
    """How many neighbouring groups share a block of about `width` channels."""
    merged = max(1, width // group_in)
    while groups % merged:
        merged -= 1
    return merged


def _dense_blocks(kernel: jax.Array, groups: int, width: int) -> jax.Array:
    """(kh, kw, C / groups, O) → one block-diagonal kernel per block, (B, kh, kw, C / B, O / B)."""
    kh, kw, group_in, out = kernel.shape
    merged = _merged_groups(group_in, groups, width)
    blocks, group_out = groups // merged, out // groups
    split = kernel.reshape(kh, kw, group_in, blocks, merged, group_out)
    dense = jnp.einsum("hwibmo,nm->bhwnimo", split, jnp.eye(merged, dtype=kernel.dtype))
    dense = dense.reshape(blocks, kh, kw, merged * group_in, merged * group_out)
    return lax.optimization_barrier(dense)


def _diagonal(dense: jax.Array, shape: tuple[int, ...], groups: int, width: int) -> jax.Array:
    """The inverse of `_dense_blocks`: what lies off the diagonal belongs to no parameter."""
    kh, kw, group_in, out = shape
    merged = _merged_groups(group_in, groups, width)
    split = dense.reshape(-1, kh, kw, merged, group_in, merged, out // groups)
    diagonal = jnp.eye(merged, dtype=dense.dtype)
    return jnp.einsum("bhwnimo,nm->hwibmo", split, diagonal).reshape(shape)

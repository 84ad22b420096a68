"""2-D convolution in the formulation that is fastest on the backend at hand.

Arrays are NHWC, kernels HWIO with I = channels / groups, whatever the formulation: the choice never
shows in the parameters. `conv2d_reference` is the plain XLA convolution and the specification.
"""

import jax
import jax.numpy as jnp
from jax import lax

_BLOCK_WIDTH = 16
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


def _grouped_in_blocks(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int
) -> jax.Array:
    """A grouped convolution as dense convolutions of neighbouring groups.

    XLA's CPU backend has no fast gradient of a grouped convolution. Each block of `_BLOCK_WIDTH`
    channels gets an ordinary convolution whose kernel is block-diagonal over its groups.
    """
    kh, kw, group_in, out = kernel.shape
    group_out = out // groups
    merged = max(1, _BLOCK_WIDTH // group_in)
    while groups % merged:
        merged -= 1
    blocks = groups // merged
    kernel = kernel.reshape(kh, kw, group_in, blocks, merged, group_out)
    diagonal = jnp.eye(merged, dtype=kernel.dtype)
    dense = jnp.einsum("hwibmo,nm->bhwnimo", kernel, diagonal).reshape(
        blocks, kh, kw, merged * group_in, merged * group_out
    )
    pieces = [
        conv2d_reference(piece, block, stride=stride, padding=padding)
        for piece, block in zip(jnp.split(x, blocks, axis=-1), dense, strict=True)
    ]
    return jnp.concatenate(pieces, axis=-1)

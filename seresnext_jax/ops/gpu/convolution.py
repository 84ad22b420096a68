"""2-D convolution on an NVIDIA GPU: cuDNN's, with groups merged to suit its tensor cores."""

import jax
import jax.numpy as jnp
from jax import lax

from seresnext_jax.ops.reference import conv2d_reference

_GROUP_WIDTH = 32
"""Channels: narrower groups are merged. Measured on an H100 (docs/performance.md)."""


def conv2d_on_gpu(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int
) -> jax.Array:
    """`ops.convolution.conv2d` for NVIDIA GPUs."""
    if groups == 1:
        return conv2d_reference(x, kernel, stride=stride, padding=padding)
    even = x.shape[1] % 2 == x.shape[2] % 2 == 0
    if kernel.shape[:2] == (3, 3) and stride == 2 and padding == 1 and even:
        return _on_cells(x, kernel, groups)
    merged = _merged_groups(kernel.shape[2], groups)
    return conv2d_reference(
        x,
        _block_diagonal(kernel, groups, merged),
        stride=stride,
        padding=padding,
        groups=groups // merged,
    )


def _merged_groups(group_in: int, groups: int) -> int:
    """How many neighbouring groups of `group_in` channels become one."""
    merged = max(1, _GROUP_WIDTH // group_in)
    while groups % merged:
        merged -= 1
    return merged


def _block_diagonal(kernel: jax.Array, groups: int, merged: int) -> jax.Array:
    """(kh, kw, C / groups, O) → (kh, kw, merged · C / groups, O), zero between merged groups.

    It is padded and stacked, so that its gradient consists of slices. A product with a mask would
    turn an overflow in the gradient of a masked zero into a NaN in a parameter's gradient.
    """
    kh, kw, group_in, out = kernel.shape
    split = kernel.reshape(kh, kw, group_in, groups // merged, merged, out // groups)
    rows = []
    for j in range(merged):
        around = (j * group_in, (merged - 1 - j) * group_in)
        rows.append(jnp.pad(split[..., j, :], ((0, 0), (0, 0), around, (0, 0), (0, 0))))
    return jnp.stack(rows, axis=4).reshape(kh, kw, merged * group_in, out)


def _on_cells(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """A grouped 3×3 convolution of stride 2 and padding 1, as a 2×2 one over cells of 2×2 pixels.

    H and W must be even. XLA computes the input gradient of a strided convolution from a gradient
    dilated with zeros, which is four times the arithmetic. Here there is no stride, and the groups
    become four times as wide.
    """
    n, h, w, c = x.shape
    group_in = c // groups
    cells = x.reshape(n, h // 2, 2, w // 2, 2, groups, group_in)
    cells = cells.transpose(0, 1, 3, 5, 2, 4, 6).reshape(n, h // 2, w // 2, 4 * c)
    # A zero row and column before the kernel, so that its taps start at the border of a cell.
    taps = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    taps = taps.reshape(2, 2, 2, 2, group_in, -1).transpose(0, 2, 1, 3, 4, 5)
    return lax.conv_general_dilated(
        cells,
        taps.reshape(2, 2, 4 * group_in, -1),
        window_strides=(1, 1),
        padding=((1, 0), (1, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )

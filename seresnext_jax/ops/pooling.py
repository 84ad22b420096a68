"""Pooling over H and W of NHWC arrays."""

import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x: jax.Array) -> jax.Array:
    """3×3 maximum with stride 2 and padding 1: (N, H, W, C) → (N, ⌈H/2⌉, ⌈W/2⌉, C).

    On the CPU as nine strided slices: the gradient of XLA's window reduction
    (select-and-scatter) is several times slower there. Where several equal values are the
    maximum, the slices share the gradient that torch gives to the first; after a ReLU the ties
    are zeros, whose gradient is zero anyway.
    """
    if jax.default_backend() == "cpu":
        return _max_of_slices(x)
    return max_pool_reference(x)


def max_pool_reference(x: jax.Array) -> jax.Array:
    """The same pooling as one XLA operation."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def _max_of_slices(x: jax.Array) -> jax.Array:
    n, h, w, c = x.shape
    out_h, out_w = (h + 1) // 2, (w + 1) // 2
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)

    def shifted(axis_start: tuple[int, int]) -> jax.Array:
        top, left = axis_start
        return lax.slice(
            padded,
            (0, top, left, 0),
            (n, top + 2 * out_h - 1, left + 2 * out_w - 1, c),
            (1, 2, 2, 1),
        )

    result = shifted((0, 0))
    for start in [(i, j) for i in range(3) for j in range(3) if (i, j) != (0, 0)]:
        result = jnp.maximum(result, shifted(start))
    return result


def global_mean(x: jax.Array) -> jax.Array:
    """Mean over H and W, accumulated in float32: (N, H, W, C) → (N, C) of x's dtype."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)

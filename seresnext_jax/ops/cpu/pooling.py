"""Maximum pooling on a CPU."""

import jax
import jax.numpy as jnp
from jax import lax


def max_pool_on_cpu(x: jax.Array) -> jax.Array:
    """`ops.pooling.max_pool` as the maximum of nine strided slices.

    The gradient of XLA's window reduction (select-and-scatter) is several times slower. Where
    several equal values are the maximum, the slices share the gradient that torch gives to the
    first; after a ReLU the ties are zeros, whose gradient is zero anyway.
    """
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

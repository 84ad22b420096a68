"""Max pooling on a CPU."""

from functools import reduce

import jax
import jax.numpy as jnp


def max_pool_on_cpu(x: jax.Array) -> jax.Array:
    """`ops.pooling.max_pool` as the maximum of nine strided slices.

    The gradient of XLA's window reduction (select-and-scatter) is several times slower. Where
    several equal values are the maximum, the slices share the gradient that torch gives to the
    first; after a ReLU the ties are zeros, whose gradient is zero anyway.
    """
    out_h, out_w = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    slices = [
        padded[:, top : top + 2 * out_h - 1 : 2, left : left + 2 * out_w - 1 : 2]
        for top in range(3)
        for left in range(3)
    ]
    return reduce(jnp.maximum, slices)

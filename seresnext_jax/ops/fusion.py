"""Where XLA's CPU backend is told to stop fusing.

It copies a cheap producer into each of its consumers. The output of a residual block has two, so
that it would be computed anew from all blocks before it, and its gradient from all behind; a
grouped convolution has dozens, each of which would hold BatchNorm again. It does not copy a
conditional, and `lax.optimization_barrier` is gone before it fuses: so a value that is to be
computed once is made to hang on a condition that holds, as XLA does not know.
"""

import jax
import jax.numpy as jnp
from jax import lax


def relu_once(x: jax.Array) -> jax.Array:
    """ReLU whose result, and whose gradient, the CPU backend computes once and keeps."""
    if jax.default_backend() != "cpu":
        return jax.nn.relu(x)
    corner = lax.stop_gradient(x[(0,) * x.ndim])
    # The same in other words, as two equal branches would be made one.
    return lax.cond(corner == corner, jax.nn.relu, lambda x: jnp.where(x <= 0, 0, x), x)


def computed_once(x: jax.Array) -> jax.Array:
    """x, which the CPU backend computes once and keeps; all NaN where the first element is."""
    if jax.default_backend() != "cpu":
        return x
    corner = x[(0,) * x.ndim]
    return lax.cond(corner == corner, lambda x: x, lambda x: jnp.full_like(x, jnp.nan), x)

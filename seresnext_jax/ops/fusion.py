"""Where XLA's CPU backend is told to stop fusing."""

import jax
import jax.numpy as jnp
from jax import lax


def materialize(x: jax.Array) -> jax.Array:
    """Compute x once and keep it, and its gradient likewise; for the CPU, no effect elsewhere.

    The CPU backend copies a cheap producer into each of its consumers. The output of a residual
    block has two, so that it would be computed anew from all blocks before it, and its gradient
    from all behind. It does not copy a division, and `lax.optimization_barrier` is gone before it
    fuses: so x is divided by a one of which XLA does not know that it is one.
    """
    if jax.default_backend() != "cpu":
        return x
    corner = lax.stop_gradient(x[(0,) * x.ndim])
    one = 1 + jnp.minimum(jnp.abs(corner), 0)
    return x / one

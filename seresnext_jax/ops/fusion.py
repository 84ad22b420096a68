"""Where XLA's CPU backend is told to stop fusing."""

import jax
from jax import lax


def materialize(x: jax.Array) -> jax.Array:
    """Compute x once and keep it, on the CPU; no effect elsewhere, nor ever on the values.

    The CPU backend copies a cheap producer into each of its consumers. A residual network's block
    has two, so that a block's output would be computed anew from all blocks before it.
    """
    return lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x

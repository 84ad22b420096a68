"""Where XLA's CPU backend is told to stop fusing."""

import jax
from jax import lax


def relu_once(x: jax.Array) -> jax.Array:
    """ReLU whose result, and whose gradient, the CPU backend computes once and keeps.

    It copies a cheap producer into each of its consumers. The output of a residual block has two,
    so that it would be computed anew from all blocks before it, and its gradient from all behind.
    It does not copy a conditional, and `lax.optimization_barrier` is gone before it fuses: so the
    ReLU is made to hang on a condition that holds, as XLA does not know (a NaN takes the other
    branch, and stays one).
    """
    if jax.default_backend() != "cpu":
        return jax.nn.relu(x)
    corner = lax.stop_gradient(x[(0,) * x.ndim])
    return lax.cond(corner == corner, jax.nn.relu, lambda x: x, x)

"""Stops XLA's CPU backend from computing a value again in each of its consumers.

XLA copies a cheap producer into each of its consumers. The output of a residual block has two
consumers, so it would be computed again from all blocks before it, and its gradient from all blocks
after it. A grouped convolution consumes its input in dozens of blocks, each of which would compute
BatchNorm again. XLA does not copy a conditional, and it removes `lax.optimization_barrier` before
it fuses. So a value to be computed once is guarded by a condition that XLA cannot prove true.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def relu_once(x: jax.Array) -> jax.Array:
    """ReLU whose result, and whose gradient, are computed once and kept."""
    corner = lax.stop_gradient(x[(0,) * x.ndim])
    # Written differently, because XLA would merge two equal branches.
    return lax.cond(corner == corner, jax.nn.relu, lambda x: jnp.where(x <= 0, 0, x), x)


@jax.custom_vjp
def relu_once_if_differentiated(x: jax.Array) -> jax.Array:
    """`relu_once` if differentiated; otherwise a ReLU that XLA can fuse, which is cheaper."""
    return jax.nn.relu(x)


def _backward(vjp: Any, gradient: jax.Array) -> Any:
    return vjp(gradient)


relu_once_if_differentiated.defvjp(lambda x: jax.vjp(relu_once, x), _backward)


def computed_once(x: jax.Array) -> jax.Array:
    """x, computed once and kept; all NaN if its first element is NaN."""
    corner = x[(0,) * x.ndim]
    return lax.cond(corner == corner, lambda x: x, lambda x: jnp.full_like(x, jnp.nan), x)

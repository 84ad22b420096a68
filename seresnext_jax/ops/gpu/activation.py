"""ReLU at the end of a residual block, on an NVIDIA GPU."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def relu_from_output(x: jax.Array) -> jax.Array:
    """ReLU whose gradient is masked by its output, which is stored anyway, and not by its input."""
    return jax.nn.relu(x)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Without the barrier XLA finds that the output is positive where the input is, and keeps both.
    y = lax.optimization_barrier(jax.nn.relu(x))
    return y, y


def _backward(y: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(y > 0, gradient, 0),)


relu_from_output.defvjp(_forward, _backward)

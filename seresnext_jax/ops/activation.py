"""ReLU by its position in a residual block, which decides what to store for its gradient."""

import jax
from jax import lax

from seresnext_jax.ops.cpu.fusion import relu_once, relu_once_if_differentiated
from seresnext_jax.ops.gpu.activation import relu_from_output


@jax.jit
def inner_relu(x: jax.Array) -> jax.Array:
    """ReLU between two convolutions of a block: its result has one consumer."""
    return lax.platform_dependent(x, cpu=relu_once_if_differentiated, default=jax.nn.relu)


@jax.jit
def output_relu(x: jax.Array) -> jax.Array:
    """ReLU at the end of a block: its result is stored, for the next block and its shortcut."""
    return lax.platform_dependent(x, cpu=relu_once, default=relu_from_output)

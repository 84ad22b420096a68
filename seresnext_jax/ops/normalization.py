"""The arithmetic of BatchNorm, in as few passes over the activations as possible.

G groups of images are normalised separately: image n belongs to group n · G // N. Each
function is jitted, so it is traced once for all layers of a shape.
"""

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.jit, static_argnames="groups")
def batch_statistics(
    x: jax.Array, shift: jax.Array, *, groups: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Means of each image, and mean and biased variance of each group, in one pass over x.

    Args:
      x: (N, H, W, C).
      shift: (C,) float32, near the mean. It is subtracted before squaring, to avoid cancellation
        if the mean is much larger than the standard deviation.
      groups: G.

    Returns:
      (N, C), (G, C) and (G, C), float32.
    """
    shifted = x.astype(jnp.float32) - shift
    image_means = jnp.mean(shifted, axis=(1, 2))
    image_squares = jnp.mean(jnp.square(shifted), axis=(1, 2))
    mean = jnp.mean(image_means.reshape(groups, -1, x.shape[-1]), axis=1)
    square = jnp.mean(image_squares.reshape(groups, -1, x.shape[-1]), axis=1)
    var = jnp.maximum(square - jnp.square(mean), 0.0)
    return image_means + shift, mean + shift, var


@jax.jit
def scale_and_shift(x: jax.Array, slope: jax.Array, offset: jax.Array) -> jax.Array:
    """``slope · x + offset``, rounded once to x's dtype.

    Args:
      x: (N, H, W, C).
      slope, offset: (G, C) float32.
    """
    grouped = x.reshape(len(slope), -1, *x.shape[1:])
    y = grouped * slope[:, None, None, None] + offset[:, None, None, None]
    return y.astype(x.dtype).reshape(x.shape)


@jax.jit
def scale_shift_and_add(
    x: jax.Array, slope: jax.Array, offset: jax.Array, residual: jax.Array
) -> jax.Array:
    """``slope · x + offset + residual``, rounded once to x's dtype.

    Args:
      x, residual: (N, H, W, C).
      slope, offset: (N, C) float32.
    """
    return (x * slope[:, None, None] + offset[:, None, None] + residual).astype(x.dtype)

"""Mixup (Zhang et al. 2018) as the original draws it: one coefficient per device batch."""

import jax
import jax.numpy as jnp


def mixup(
    key: jax.Array, images: jax.Array, targets: jax.Array, mask: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mix each image with a random one of the same batch; c ~ Beta(alpha, alpha).

    NVIDIA: image_classification/mixup.py. Neither max(c, 1 - c) nor a probability is applied.

    Args:
      images: (N, H, W, 3) float, normalised.
      targets: (N, K) float32 one-hot.
      mask: (N,) bool; an image mixed with a masked one is masked too.

    Returns:
      Images, targets and mask of the same shapes and types.
    """
    coefficient_key, order_key = jax.random.split(key)
    c = jax.random.beta(coefficient_key, alpha, alpha, dtype=jnp.float32)
    order = jax.random.permutation(order_key, images.shape[0])
    return mix(images, targets, mask, c, order)


def mix(
    images: jax.Array, targets: jax.Array, mask: jax.Array, c: jax.Array, order: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """c · x + (1 - c) · x[order], for images and targets."""
    images = c * images + (1 - c) * images[order]
    targets = c * targets + (1 - c) * targets[order]
    return images, targets, mask & mask[order]

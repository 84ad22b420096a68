"""Normalises pixels for the network."""

import jax
import jax.numpy as jnp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(images: jax.Array) -> jax.Array:
    """uint8 RGB (..., 3) → float32, (x - 255 mean) / (255 std) per channel.

    NVIDIA: image_classification/dataloaders.py, PrefetchedWrapper.
    """
    mean = 255 * jnp.array(IMAGENET_MEAN, jnp.float32)
    std = 255 * jnp.array(IMAGENET_STD, jnp.float32)
    return (images.astype(jnp.float32) - mean) / std

"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): one draw per device and forward pass."""

import jax
import jax.numpy as jnp


def mix_batch(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    mixup: float,
    cutmix: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Combine each image with a random one of the same batch, by mixup or CutMix.

    Mixup is the original's: it uses c ~ Beta(alpha, alpha), not max(c, 1 - c), and mixes every
    batch. NVIDIA: image_classification/mixup.py. CutMix replaces a rectangle. If both are on, each
    batch gets one of them, with equal probability. At least one must be on.

    Args:
      images: (N, H, W, 3) float, normalised.
      targets: (N, K) float32 one-hot.
      mask: (N,) bool; an image mixed with a masked one is masked too.
      mixup: alpha of mixup's Beta distribution; 0: off.
      cutmix: alpha of CutMix's Beta distribution; 0: off.

    Returns:
      Images, targets and mask of the same shapes and types.
    """
    coefficient_key, order_key = jax.random.split(key)
    order = jax.random.permutation(order_key, images.shape[0])
    if not cutmix:
        kept = share = jax.random.beta(coefficient_key, mixup, mixup, dtype=jnp.float32)
        return mix(images, targets, mask, kept, share, order)
    choice_key, box_key = jax.random.split(jax.random.fold_in(key, 2))
    kept, share = random_box(box_key, images.shape[1], images.shape[2], cutmix)
    if mixup:
        c = jax.random.beta(coefficient_key, mixup, mixup, dtype=jnp.float32)
        cuts = jax.random.bernoulli(choice_key)
        kept, share = jnp.where(cuts, kept, c), jnp.where(cuts, share, c)
    return mix(images, targets, mask, kept, share, order)


def random_box(
    key: jax.Array, height: int, width: int, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """CutMix's rectangle around a random pixel: 1 - c of the image's area, c ~ Beta(alpha, alpha).

    The rectangle is cropped to the image.

    Returns:
      (H, W, 1) float32, 0 inside and 1 outside the rectangle; and the mean of this array, a scalar.
    """
    c_key, y_key, x_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(c_key, alpha, alpha, dtype=jnp.float32))

    def inside(key: jax.Array, size: int) -> jax.Array:
        half = (side * size).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, size)
        position = jnp.arange(size)
        return (position >= centre - half) & (position < centre + half)

    box = inside(y_key, height)[:, None, None] & inside(x_key, width)[None, :, None]
    kept = 1 - box.astype(jnp.float32)
    return kept, jnp.mean(kept)


def mix(
    images: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    kept: jax.Array,
    share: jax.Array,
    order: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x · kept + x[order] · (1 - kept) for images, with `share` instead of `kept` for targets.

    Args:
      kept: a scalar, or (H, W, 1).
      share: a scalar, the mean of `kept`.
      order: (N,) int32, the index of the image that each image is mixed with.
    """
    images = kept * images + (1 - kept) * images[order]
    targets = share * targets + (1 - share) * targets[order]
    return images, targets, mask & mask[order]

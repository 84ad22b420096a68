"""Evaluation sums: not averaged per batch, so exact for any batch size and number of devices."""

import jax
import jax.numpy as jnp

from seresnext_jax.training.losses import smoothed_cross_entropy


def evaluation_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, *, topk: int, smoothing: float
) -> dict[str, jax.Array]:
    """Sums over the unmasked images; divide by ``count`` once, at the end.

    Args:
      logits: (N, K) float32.
      labels: (N,) int32.
      mask: (N,) bool.

    Returns:
      float32 scalars: count, top1 and topk (correct images), loss (label-smoothed), ce (plain
      cross-entropy).
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    rank = label_rank(logits, labels)
    values = {
        "count": jnp.ones_like(mask, jnp.float32),
        "top1": (rank < 1).astype(jnp.float32),
        "topk": (rank < topk).astype(jnp.float32),
        "loss": smoothed_cross_entropy(logits, targets, smoothing),
        "ce": smoothed_cross_entropy(logits, targets, 0.0),
    }
    return {name: jnp.sum(jnp.where(mask, value, 0.0)) for name, value in values.items()}


def label_rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes rank above the label: (N, K), (N,) → (N,) int32.

    Of equal logits, that of the lower class index ranks first. A label whose logit is NaN ranks
    last, so that a diverged network does not look like a perfect one.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1])
    lower = (own > logits) | ((own == logits) & (labels[:, None] < classes))
    others = classes != labels[:, None]
    return jnp.sum(others & ~lower, axis=-1)


def image_results(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, *, topk: int
) -> dict[str, jax.Array]:
    """The prediction for each image: the fields of `Predictions` except ``index``; and ``mask``.

    Args:
      logits: (N, K) float32, K >= `topk`.
      labels: (N,) int32.
      mask: (N,) bool.
    """
    probabilities = jax.nn.softmax(logits)
    _, classes = jax.lax.top_k(logits, topk)  # probabilities of unequal logits can be equal
    return {
        "mask": mask,
        "labels": labels,
        "rank": label_rank(logits, labels),
        "label_probability": jnp.take_along_axis(probabilities, labels[:, None], axis=-1)[:, 0],
        "classes": classes,
        "probabilities": jnp.take_along_axis(probabilities, classes, axis=-1),
    }

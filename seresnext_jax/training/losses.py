"""Classification losses, one value per image; the caller averages over unmasked images."""

import jax
import jax.numpy as jnp


def smoothed_cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
    """(1 - s) · Σ_k -log p_k t_k + s · mean_k -log p_k, per image.

    With one-hot targets this is the original's LabelSmoothing, with mixed targets its
    NLLMultiLabelSmooth. NVIDIA: image_classification/smoothing.py, mixup.py.

    Args:
      logits: (N, K) float32.
      targets: (N, K) float32, each row sums to 1.

    Returns:
      (N,) float32.
    """
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.sum(log_p * targets, axis=-1)
    uniform = -jnp.mean(log_p, axis=-1)
    return (1 - smoothing) * nll + smoothing * uniform

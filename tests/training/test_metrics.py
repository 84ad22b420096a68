"""Losses, mixup and evaluation sums against PyTorch and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seresnext_jax.training.losses import smoothed_cross_entropy
from seresnext_jax.training.metrics import evaluation_sums, label_rank
from seresnext_jax.training.mixup import mixup

N, K = 64, 12
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, K)).astype(np.float32)
LABELS = RNG.integers(0, K, N).astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_cross_entropy_is_torchs(smoothing: float) -> None:
    found = smoothed_cross_entropy(LOGITS, jax.nn.one_hot(LABELS, K), smoothing)
    wanted = F.cross_entropy(
        torch.tensor(LOGITS),
        torch.tensor(LABELS).long(),
        label_smoothing=smoothing,
        reduction="none",
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 5])
def test_rank_below_k_is_torchs_topk(k: int) -> None:
    top = torch.tensor(LOGITS).topk(k).indices.numpy()
    wanted = (top == LABELS[:, None]).any(axis=1)
    np.testing.assert_array_equal(np.asarray(label_rank(LOGITS, LABELS)) < k, wanted)


def test_equal_logits_count_one_class_and_a_diverged_network_none() -> None:
    flat = jnp.zeros((K, K))
    assert int(jnp.sum(label_rank(flat, jnp.arange(K)) < 1)) == 1
    lost = jnp.full((K, K), jnp.nan)
    assert int(jnp.sum(label_rank(lost, jnp.arange(K)) < 5)) == 0


def test_sums_do_not_depend_on_batches_and_skip_the_masked() -> None:
    mask = RNG.random(N) < 0.7

    def sums(cuts: list[int]) -> dict[str, float]:
        parts = [
            evaluation_sums(*part, topk=3, smoothing=0.1)
            for part in zip(*(np.split(a, cuts) for a in (LOGITS, LABELS, mask)), strict=True)
        ]
        return {name: sum(float(p[name]) for p in parts) for name in parts[0]}

    whole, cut = sums([]), sums([7, 40])
    assert whole == pytest.approx(cut, rel=1e-5)
    assert whole["count"] == mask.sum()
    right = LOGITS.argmax(axis=1) == LABELS
    assert whole["top1"] == (right & mask).sum()


def test_mixup_mixes_images_labels_and_masks_with_one_draw() -> None:
    images = jnp.arange(8.0)[:, None, None, None] * jnp.ones((8, 2, 2, 3))
    targets = jax.nn.one_hot(jnp.arange(8), 8)
    mask = jnp.arange(8) != 3
    x, y, seen = mixup(jax.random.key(0), images, targets, mask, 0.2)
    y, found = np.asarray(y), np.asarray(x)[:, 0, 0, 0]
    partners = [int((row + (np.arange(8) == i) * -2).argmax()) for i, row in enumerate(y)]
    partners = [p if y[i, p] > 0 else i for i, p in enumerate(partners)]
    assert sorted(partners) == list(range(8)) and partners != list(range(8))
    shares = [y[i, i] for i in range(8) if partners[i] != i]
    c = float(shares[0])
    np.testing.assert_allclose(shares, c, rtol=1e-6)
    np.testing.assert_allclose(found, c * np.arange(8) + (1 - c) * np.array(partners), atol=1e-5)
    assert seen.tolist() == [i != 3 and partners[i] != 3 for i in range(8)]


def test_mixup_coefficients_follow_the_beta_distribution() -> None:
    def coefficient(key: jax.Array) -> jax.Array:
        image = jnp.zeros((2, 1, 1, 3)).at[0].set(1.0)
        x, _, _ = mixup(key, image, jnp.eye(2), jnp.ones(2, bool), 0.2)
        return x[0, 0, 0, 0]

    found = jax.vmap(coefficient)(jax.random.split(jax.random.key(1), 4000))
    # Half of the permutations of two leave an image with itself, where the coefficient is 1.
    mixed = found[found < 1]
    assert float(jnp.mean(mixed)) == pytest.approx(0.5, abs=0.03)
    assert float(jnp.var(mixed)) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.02)

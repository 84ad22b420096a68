"""Losses, mixup, CutMix and evaluation sums against PyTorch and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seresnext_jax.training.losses import smoothed_cross_entropy
from seresnext_jax.training.metrics import evaluation_sums, image_results, label_rank
from seresnext_jax.training.mixup import mix_batch, random_box

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


def test_the_most_probable_classes_are_those_of_the_ranks_where_probabilities_are_equal() -> None:
    """Float32 probabilities of unequal logits: 0 and 0, or 0.5 and 0.5."""
    close = np.nextafter(np.float32(1e-3), np.float32(1))
    logits = jnp.array([[0.0, 200.0, 400.0], [1e-3, close, -400.0]])
    found = image_results(logits, jnp.array([1, 1]), jnp.ones(2, bool), topk=2)
    assert found["classes"].tolist() == [[2, 1], [1, 0]]
    assert found["rank"].tolist() == [1, 0]
    assert found["probabilities"].tolist() == [[1, 0], [0.5, 0.5]]


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
    x, y, seen = mix_batch(jax.random.key(0), images, targets, mask, mixup=0.2, cutmix=0.0)
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
        x, _, _ = mix_batch(key, image, jnp.eye(2), jnp.ones(2, bool), mixup=0.2, cutmix=0.0)
        return x[0, 0, 0, 0]

    found = jax.vmap(coefficient)(jax.random.split(jax.random.key(1), 4000))
    # Half of the permutations of two leave an image with itself, where the coefficient is 1.
    mixed = found[found < 1]
    assert float(jnp.mean(mixed)) == pytest.approx(0.5, abs=0.03)
    assert float(jnp.var(mixed)) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.02)


def numbered_batch() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Image i is i everywhere, of class i; image 3 is masked."""
    images = jnp.arange(8.0)[:, None, None, None] * jnp.ones((8, 20, 30, 3))
    return images, jax.nn.one_hot(jnp.arange(8), 8), jnp.arange(8) != 3


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_pastes_one_rectangle_and_mixes_the_labels_by_its_true_area(seed: int) -> None:
    images, targets, mask = numbered_batch()
    x, y, seen = mix_batch(jax.random.key(seed), images, targets, mask, mixup=0.0, cutmix=1.0)
    x, y = np.asarray(x), np.asarray(y)
    pasted = (x != np.arange(8)[:, None, None, None]).any(axis=(0, 3))
    rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
    assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert len(rows) * len(columns) == pasted.sum()
    partners = x[:, rows[0], columns[0], 0].astype(int)
    assert sorted(partners) == list(range(8))
    for i, partner in enumerate(partners):
        assert set(np.unique(x[i])) == {i, partner}
        assert seen[i] == (i != 3 and partner != 3)

    logits = np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32)
    share = 1 - pasted.mean()
    first, second = (
        F.cross_entropy(
            torch.tensor(logits), torch.tensor(labels), label_smoothing=0.1, reduction="none"
        ).numpy()
        for labels in (np.arange(8), partners)
    )
    found = smoothed_cross_entropy(logits, y, 0.1)
    np.testing.assert_allclose(found, share * first + (1 - share) * second, rtol=1e-5)


def test_cutmix_boxes_are_distributed_as_the_papers() -> None:
    height, width, count = 20, 30, 4000
    keys = jax.random.split(jax.random.key(0), count)
    kept, shares = jax.vmap(lambda key: random_box(key, height, width, 1.0))(keys)
    covered = 1 - np.asarray(kept)[..., 0].mean(axis=0)

    rng = np.random.default_rng(0)
    wanted = np.zeros((height, width))
    for _ in range(count):
        side = np.sqrt(1 - rng.beta(1.0, 1.0))
        box = []
        for size in (height, width):
            half, centre = int(side * size) // 2, int(rng.integers(size))
            box.append(slice(max(0, centre - half), min(size, centre + half)))
        wanted[box[0], box[1]] += 1 / count
    np.testing.assert_allclose(covered, wanted, atol=0.04)
    assert float(jnp.mean(shares)) == pytest.approx(1 - wanted.mean(), abs=0.02)


def test_with_mixup_and_cutmix_each_batch_gets_one_of_them() -> None:
    images, targets, mask = numbered_batch()

    def is_cut(key: jax.Array) -> jax.Array:
        x, _, _ = mix_batch(key, images, targets, mask, mixup=1.0, cutmix=1.0)
        return jnp.all(x == jnp.round(x))

    cut = jax.vmap(is_cut)(jax.random.split(jax.random.key(0), 400))
    assert float(jnp.mean(cut)) == pytest.approx(0.5, abs=0.06)


def test_the_draws_of_mixup_stay_what_they_were() -> None:
    """A run that was begun by an earlier version continues as it would have."""
    images, targets, mask = numbered_batch()
    _, y, _ = mix_batch(jax.random.key(7), images, targets, mask, mixup=0.2, cutmix=0.0)
    c = 0.9511460661888123
    wanted = np.zeros((8, 8))
    for i, partner in enumerate([6, 0, 4, 1, 2, 5, 7, 3]):
        wanted[i, i] += c
        wanted[i, partner] += 1 - c
    np.testing.assert_allclose(y, wanted, atol=1e-6)

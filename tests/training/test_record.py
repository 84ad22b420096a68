"""The recorder: predictions of the images that count, and the worst mistakes of all batches."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from seresnext_jax.data.batch import Batch
from seresnext_jax.training.metrics import evaluation_sums, image_results
from seresnext_jax.training.record import Recorder

N, K, IMAGES = 4, 5, 10
"""Three batches of four; the last two images are padding, and image 5 was left out."""


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3 * N, K)).astype(np.float32)


@pytest.fixture
def recorder(logits: np.ndarray) -> Recorder:
    """After three batches; the pixels of an image are its number."""

    def step(rows: Any, batch: Batch) -> Any:
        judged = jnp.asarray(logits[rows]), batch.labels[0], batch.mask[0]
        return evaluation_sums(*judged, topk=2, smoothing=0.0), image_results(*judged, topk=2)

    recorder = Recorder(step, num_worst=3)
    for start in range(0, 3 * N, N):
        rows = np.arange(start, start + N)
        pixels = np.broadcast_to(rows[:, None, None, None], (N, 2, 2, 3)).astype(np.uint8)
        mask = (rows < IMAGES) & (rows != 5)
        batch = Batch(*(jnp.asarray(x)[None] for x in (pixels, rows.astype(np.int32) % K, mask)))
        assert recorder.step(rows, batch)["count"] == mask.sum()
    return recorder


def test_the_predictions_are_of_the_images_that_count(
    recorder: Recorder, logits: np.ndarray
) -> None:
    found = recorder.predictions()
    counted = [i for i in range(IMAGES) if i != 5]
    assert found.index.tolist() == counted
    exp = np.exp(logits[counted])
    probabilities = exp / exp.sum(1, keepdims=True)
    order = np.argsort(-probabilities, axis=1)
    labels = np.array(counted) % K
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.classes, order[:, :2])
    np.testing.assert_array_equal(found.rank, np.argmax(order == labels[:, None], axis=1))
    np.testing.assert_array_equal(found.right, order[:, 0] == labels)
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(found.label_probability, own, rtol=1e-5)


def test_the_worst_mistakes_of_all_batches_keep_their_pixels(recorder: Recorder) -> None:
    found = recorder.predictions()
    worst = found.worst()
    assert [mistake.number for mistake in recorder.worst] == found.index[worst[:3]].tolist()
    for mistake, row in zip(recorder.worst, worst, strict=False):
        assert (mistake.pixels == mistake.number).all()
        assert mistake.label_probability == pytest.approx(found.label_probability[row])

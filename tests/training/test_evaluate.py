"""The evaluation's count of images, and the limit on those that are left out."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seresnext_jax.data.batch import Batch
from seresnext_jax.data.limit import TooManyBadImages
from seresnext_jax.training.evaluate import evaluate

SIZE = 4


class Masks:
    """A loader of ten images, of which some are left out."""

    num_images, num_steps = 10, 3
    paths: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    fingerprint = not_listed = ""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad
        self.bad_files = [str(i) for i in bad]
        self.delivered = 0

    def batches(self, start: int) -> Iterator[Batch]:
        for step in range(start, self.num_steps):
            self.delivered += 1
            rows = range(step * SIZE, (step + 1) * SIZE)
            mask = np.array([[i < self.num_images and i not in self.bad for i in rows]])
            yield Batch(jnp.zeros((1, SIZE, 1, 1, 3)), jnp.zeros((1, SIZE)), jnp.asarray(mask))

    def close(self) -> None:
        """Nothing to close."""


def step(variables: Any, batch: Batch) -> dict[str, jax.Array]:
    count = jnp.sum(batch.mask)
    return {"count": count, "top1": count / 2, "topk": count, "loss": 3 * count}


def test_means_are_over_the_images_that_count() -> None:
    found = evaluate(step, None, Masks({1, 9}), 5, max_bad_share=0.2)
    assert (found["count"], found["images"]) == (8, 10)
    assert (found["top1"], found["top5"], found["loss"]) == (50, 100, 3)


def test_too_many_are_an_error_as_soon_as_they_are_met() -> None:
    loader = Masks({1, 2})
    with pytest.raises(TooManyBadImages, match="2 of the 10 images of the evaluation .* 0.19 all"):
        evaluate(step, None, loader, 5, max_bad_share=0.19)
    assert loader.delivered == 1
    assert evaluate(step, None, Masks({1, 2}), 5, max_bad_share=0.2)["count"] == 8


def test_an_evaluation_of_no_image_is_an_error() -> None:
    with pytest.raises(TooManyBadImages, match="none of the 10 images"):
        evaluate(step, None, Masks(set(range(10))), 5, max_bad_share=1.0)


def test_a_missing_image_that_no_reader_knows_is_a_bug() -> None:
    loader = Masks({3})
    loader.bad_files = []
    with pytest.raises(RuntimeError, match="evaluated 9 of 10 images"):
        evaluate(step, None, loader, 5)

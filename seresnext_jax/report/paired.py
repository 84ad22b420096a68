"""Two networks on the same images: how they differ, and whether that may be chance."""

from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from seresnext_jax.report.details import Row, image_name, number
from seresnext_jax.report.predictions import Predictions
from seresnext_jax.report.statistics import mcnemar_exact

SIGNIFICANT = 0.05
"""A p-value below this is called unlikely to be chance."""


class PairedTest(NamedTuple):
    """How many images both, one or none of two networks classify correctly."""

    both_right: int
    only_first: int
    only_second: int
    neither: int
    p_value: float
    """Of McNemar's exact test."""


def in_common(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """The predictions of two networks, restricted to the images that both evaluated."""
    return _only(first, second.index), _only(second, first.index)


def _only(predictions: Predictions, index: np.ndarray) -> Predictions:
    rows = np.isin(predictions.index, index)
    kept = {f.name: getattr(predictions, f.name)[rows] for f in fields(predictions)}
    return Predictions(**kept)


def compare_paired(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """Compare two networks by the images that each classifies correctly: two (M,) bool arrays."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return PairedTest(
        int((first & second).sum()),
        only_first,
        only_second,
        int((~first & ~second).sum()),
        mcnemar_exact(only_first, only_second),
    )


def comparison_rows(test: PairedTest) -> list[tuple[str, str]]:
    """The result as names and values, with a verdict."""
    images = test.both_right + test.only_first + test.only_second + test.neither
    gain = 100 * (test.only_second - test.only_first) / max(1, images)
    chance = "is unlikely to be" if test.p_value < SIGNIFICANT else "may be"
    return [
        ("images", str(images)),
        ("both right", str(test.both_right)),
        ("only --weights right", str(test.only_first)),
        ("only --against right", str(test.only_second)),
        ("both wrong", str(test.neither)),
        ("top-1 of --against", f"{gain:+.2f} points"),
        ("McNemar's exact test", f"p = {test.p_value:.3g}: the difference {chance} chance"),
    ]


def difference_rows(
    first: Predictions, second: Predictions, names: Sequence[str], paths: Sequence[str]
) -> list[Row]:
    """A row for each image that only one of two networks classifies correctly.

    Args:
      first, second: predictions for the same images.
      names: the class names in the order of the first network's labels.
      paths: the path of each image of the split; empty: the images have no files.
    """
    return [
        {
            "image": image_name(paths, int(first.index[row])),
            "label": int(first.labels[row]),
            "label_name": names[first.labels[row]],
            "right": "weights" if first.right[row] else "against",
            "weights_probability": number(first.label_probability[row]),
            "against_probability": number(second.label_probability[row]),
        }
        for row in np.flatnonzero(first.right != second.right).tolist()
    ]

"""Confidence interval of an accuracy, calibration, and McNemar's test of two networks."""

from typing import NamedTuple

import numpy as np

BINS = 15
"""Calibration bins, as in Guo et al., On Calibration of Modern Neural Networks, 2017."""


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """The 95 % confidence interval of the accuracy right / images, by Wilson's score; in [0, 1].

    Raises:
      ValueError: there are no images.
    """
    from scipy.stats import binomtest

    interval = binomtest(right, images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


class Bin(NamedTuple):
    """The images whose most probable class has a probability in (low, high]."""

    low: float
    high: float
    images: int
    confidence: float
    """Mean probability of the most probable class; NaN without images."""
    accuracy: float
    """Share of the images that are classified correctly; NaN without images."""


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The reliability table: `bins` bins of equal width, by the probability of the predicted class.

    Args:
      confidence: (M,) float; the probability of the most probable class. 0 is in the first bin; an
        image with NaN is in none.
      right: (M,) bool; whether that class is the label.
    """
    edges = np.linspace(0, 1, bins + 1)
    # `searchsorted` puts NaN after the last bin.
    number = np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)
    table = []
    for i in range(bins):
        inside = number == i
        images = int(inside.sum())
        means = (
            (float(confidence[inside].mean(dtype=np.float64)), float(right[inside].mean()))
            if images
            else (np.nan, np.nan)
        )
        table.append(Bin(float(edges[i]), float(edges[i + 1]), images, *means))
    return table


def calibration_error(table: list[Bin]) -> float:
    """The expected calibration error: mean |confidence - accuracy| of the bins, weighted by images.

    NaN if all bins are empty.
    """
    images = sum(row.images for row in table)
    gaps = (row.images * abs(row.confidence - row.accuracy) for row in table if row.images)
    return sum(gaps) / images if images else float("nan")


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """The p-value of McNemar's exact two-sided test of two networks on the same images.

    It is the probability that two equally good networks differ at least this much, if chance
    decides which of them is correct wherever only one is.

    Args:
      only_first, only_second: images that only one of the networks classifies correctly.
    """
    from scipy.stats import binomtest

    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0

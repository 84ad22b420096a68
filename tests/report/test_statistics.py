"""Confidence intervals, calibration and McNemar's test, against formulas and scikit-learn."""

from fractions import Fraction
from math import comb, sqrt

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from seresnext_jax.report.statistics import (
    BINS,
    calibration_error,
    mcnemar_exact,
    reliability,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("right", "images"), [(0, 10), (10, 10), (1, 1), (3, 7), (355, 360), (38_500, 50_000)]
)
def test_the_interval_is_wilsons(right: int, images: int) -> None:
    share, z = right / images, 1.959963984540054
    centre = share + z**2 / (2 * images)
    half = z * sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    expected = [x / (1 + z**2 / images) for x in (centre - half, centre + half)]
    assert wilson_interval(right, images) == pytest.approx(expected, abs=1e-12)


def test_no_images_have_no_interval() -> None:
    with pytest.raises(ValueError, match="not less than 1"):
        wilson_interval(0, 0)


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (1, 0), (0, 5), (5, 5), (9, 2), (121, 59), (700, 801)]
)
def test_the_paired_test_is_the_binomial_test(first: int, second: int) -> None:
    both = first + second
    tail = sum(comb(both, k) for k in range(min(first, second) + 1))
    expected = min(1.0, float(Fraction(2 * tail, 2**both)))
    assert mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)


def test_the_paired_test_of_very_many_images_does_not_overflow() -> None:
    assert mcnemar_exact(3000, 3000) == 1.0
    assert 0 < mcnemar_exact(2900, 3200) < 1e-3


def test_the_reliability_table_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    confidence = random.beta(5, 2, 2000)
    right = random.random(2000) < confidence**1.5
    table = reliability(confidence, right)
    accuracy, mean = calibration_curve(right, confidence, n_bins=BINS)
    filled = [row for row in table if row.images]
    np.testing.assert_allclose([row.accuracy for row in filled], accuracy)
    np.testing.assert_allclose([row.confidence for row in filled], mean)
    assert sum(row.images for row in table) == 2000
    counts, _ = np.histogram(confidence, np.linspace(0, 1, BINS + 1))
    expected = np.sum(counts[counts > 0] * np.abs(accuracy - mean)) / 2000
    assert calibration_error(table) == pytest.approx(expected)


def test_a_sure_and_right_network_is_calibrated() -> None:
    table = reliability(np.ones(8, np.float32), np.ones(8, bool))
    assert (table[-1].images, calibration_error(table)) == (8, 0.0)
    table = reliability(np.ones(8, np.float32), np.arange(8) < 6)
    assert calibration_error(table) == 0.25


def test_bins_include_their_upper_edge_and_probabilities_that_are_not_numbers_are_in_none() -> None:
    table = reliability(np.array([0.0, 0.5, 1.0, np.nan]), np.ones(4, bool), bins=2)
    assert [row.images for row in table] == [2, 1]
    nothing = reliability(np.array([np.nan]), np.zeros(1, bool))
    assert np.isnan(calibration_error(nothing))

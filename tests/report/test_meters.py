"""Means, the clock and percentiles."""

import json
import math

import numpy as np
import pytest

from seresnext_jax.report.meters import Clock, Mean, percentile


def test_mean_survives_json_exactly() -> None:
    values = np.random.default_rng(0).normal(size=20)
    first, second = Mean(), Mean()
    for value in values:
        first.add(value)
        second.add(value)
        second = Mean(**json.loads(json.dumps(vars(second))))
    assert second.value == first.value == pytest.approx(np.mean(values))
    first.reset()
    assert math.isnan(first.value)


def test_clock_counts_from_mark_to_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("seresnext_jax.report.meters.time.perf_counter", lambda: now)
    clock = Clock()
    clock.waited(0.5)
    clock.waited(0.25)
    now = 103.0
    assert clock.mark() == (3.0, 0.75)
    now = 110.0  # an evaluation: a mark before and one after leave it out
    clock.mark()
    now = 111.5
    assert clock.mark() == (1.5, 0.0)


@pytest.mark.parametrize("count", [1, 2, 10, 11, 391])
@pytest.mark.parametrize("percent", [0, 50, 90, 95, 99, 100])
def test_percentile_is_the_nearest_value(count: int, percent: int) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    # Python rounds halves to the even neighbour, as numpy's "nearest" does.
    expected = np.sort(values)[round(percent / 100 * (count - 1))]
    assert percentile(list(values), percent) == expected

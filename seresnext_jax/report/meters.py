"""A clock, percentiles, and means that can be saved in a checkpoint."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Mean:
    """The mean of the values added since the last reset."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Add a value."""
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        """The mean; NaN if there are no values."""
        return self.total / self.count if self.count else float("nan")

    def reset(self) -> None:
        """Remove all values."""
        self.total, self.count = 0.0, 0


class Clock:
    """Measures wall time, and how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self._marked = time.perf_counter()
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """Count `seconds` of the time since the last mark as waiting for data."""
        self._waited += seconds

    def mark(self) -> tuple[float, float]:
        """Return the seconds since the last mark (all, waiting for data) and set a new mark."""
        now = time.perf_counter()
        result = now - self._marked, self._waited
        self._marked, self._waited = now, 0.0
        return result


def percentile(values: Sequence[float], percent: float) -> float:
    """The value nearest to `percent` % of the way through the sorted values (NVIDIA: logger.py)."""
    return float(np.quantile(values, percent / 100, method="nearest"))

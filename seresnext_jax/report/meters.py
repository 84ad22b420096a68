"""Means that survive a checkpoint, a throughput clock, and percentiles."""

import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Mean:
    """A weighted mean of what was added since the last reset."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """Count `value` as `weight` observations."""
        self.total += value * weight
        self.weight += weight

    @property
    def value(self) -> float:
        """The mean; NaN of nothing."""
        return self.total / self.weight if self.weight else float("nan")

    def reset(self) -> None:
        """Forget everything."""
        self.total = self.weight = 0.0


class Clock:
    """Wall time since a mark, and how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self._marked = time.perf_counter()
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """Count `seconds` of the time since the mark as waiting for data."""
        self._waited += seconds

    def mark(self) -> tuple[float, float]:
        """Seconds (in all, waiting for data) since the last mark, and start anew."""
        now = time.perf_counter()
        result = now - self._marked, self._waited
        self._marked, self._waited = now, 0.0
        return result


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` % of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]

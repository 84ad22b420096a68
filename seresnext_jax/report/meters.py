"""What is measured: the metrics' units, means that survive a checkpoint, a clock, percentiles."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_UNITS: dict[str, tuple[str | None, str]] = {
    "loss": (None, ":.5f"),
    "ce": (None, ":.5f"),
    "compute_ips": ("images/s", ":.2f"),
    "total_ips": ("images/s", ":.2f"),
    "data_time": ("s", ":.5f"),
    "compute_time": ("s", ":.5f"),
    "grad_scale": (None, ":.5f"),
    "skipped_steps": (None, ":.0f"),
    "bad_images": (None, ":.0f"),
    "count": (None, ":.0f"),
    "compute_latency": ("s", ":.5f"),
    "top": ("%", ":.2f"),
}
"""Unit and format by the start of a metric's last name; the original describes no ``lr``."""
_VERBOSE = ("data_time", "compute_time", "compute_latency_at")


def description(metric: str) -> dict[str, str | None] | None:
    """Unit and format of ``val.top1`` and its like, as DLLogger's metadata; None: not described."""
    leaf = metric.split(".")[-1]
    for start, (unit, form) in _UNITS.items():
        if leaf.startswith(start):
            return {"unit": unit, "format": form}
    return None


def is_verbose(metric: str) -> bool:
    """Whether the original keeps a metric off the console, in an event's second record."""
    return metric.split(".")[-1].startswith(_VERBOSE)


def json_number(value: float) -> float | None:
    """A metric as a number that JSON has; None where it has none."""
    return float(value) if math.isfinite(value) else None


@dataclass
class Mean:
    """The mean of what was added since the last reset."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Count one observation."""
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        """The mean; NaN of nothing."""
        return self.total / self.count if self.count else float("nan")

    def reset(self) -> None:
        """Forget everything."""
        self.total, self.count = 0.0, 0


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
    """The value nearest to `percent` % of the way through the sorted ones (NVIDIA: logger.py)."""
    return float(np.quantile(values, percent / 100, method="nearest"))

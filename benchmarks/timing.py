"""Timing two programs in turn, so that a machine whose speed drifts is fair to both."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from seresnext_jax.report.meters import percentile

Work = Callable[[], None]
"""One step, which returns when it is finished."""


@dataclass(frozen=True)
class Timing:
    """Seconds of each step of one program."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of a step in the middle."""
        return median(self.seconds)

    @property
    def mean(self) -> float:
        """Seconds of a step on average."""
        return sum(self.seconds) / len(self.seconds)

    def at(self, percent: float) -> float:
        """Seconds that `percent` % of the steps do not exceed."""
        return percentile(self.seconds, percent)


def interleave(programs: Mapping[str, Work], *, warmup: int, steps: int) -> dict[str, Timing]:
    """Run each program `warmup` times uncounted, then all of them in turn, `steps` times."""
    for work in programs.values():
        for _ in range(warmup):
            work()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(steps):
        for name, work in programs.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}

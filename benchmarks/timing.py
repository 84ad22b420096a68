"""Timing two programs in turn, so that a machine whose speed drifts is fair to both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from seresnext_jax.report.meters import percentile

Timed = Callable[[int], list[float]]
"""Runs a number of steps of a program; returns the seconds that each took."""


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


def interleave(programs: Mapping[str, Timed], *, rounds: int, steps: int) -> dict[str, Timing]:
    """Run `steps` steps of each program in turn, `rounds` times."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, timed in programs.items():
            seconds[name] += timed(steps)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}

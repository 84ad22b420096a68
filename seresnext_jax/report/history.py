"""A run as read from its report: the data for the pages, the plots and the comparison."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from seresnext_jax.errors import UserError, printable
from seresnext_jax.report.metrics import summarize
from seresnext_jax.report.names import JSONL_NAME, PLAN_NAME
from seresnext_jax.report.sinks import PREFIX, Position, key_of, read_report

Metrics = Mapping[str, float | None]
"""None: a value that was not finite."""

_OLD_NAMES = {"lr": "train.lr"}
"""Metrics that have another name in the original's version of 2020."""

_NUMBER = (int, float)
_ABOUT_THE_START = {"recipe": str, "command": str, "deviations": dict, "environment": dict}
"""Facts recorded with the options, and their types; each is a field of `RunStart`."""


@dataclass(frozen=True)
class RunStart:
    """One start of a run: the first one, or a later one that resumed it."""

    time: float
    """Seconds since 1970."""
    last_time: float
    """Time of the last record before the next start."""
    options: Mapping[str, Any]
    recipe: str = ""
    """The config file; empty: there was none, or an older version wrote the report."""
    command: str = ""
    deviations: Mapping[str, Any] | None = None
    """Options that differ from the recipe: ``{"epochs": {"recipe": 90, "run": 3}}``.
    None: unknown."""
    environment: Mapping[str, str] | None = None
    """Hardware and versions; None: unknown."""


@dataclass(frozen=True)
class Sample:
    """Metrics at one moment of a run."""

    epochs: float
    """Epochs trained until then."""
    metrics: Metrics


@dataclass(frozen=True)
class History:
    """Everything that a report contains about a run."""

    path: Path
    """The report."""
    name: str
    """The workspace's name."""
    starts: tuple[RunStart, ...]
    steps: tuple[Sample, ...]
    """Means over the last few training steps."""
    epochs: tuple[Sample, ...]
    """Means of the finished epochs, with their evaluations."""
    ended: bool
    """The run wrote its summary."""
    plan: Mapping[str, Any]
    """The fields of the run's `Plan`; empty without a readable plan.json next to the report."""

    @property
    def start(self) -> RunStart:
        """The last start that trained; in a report without one, the last start."""
        training = [start for start in self.starts if not start.options.get("evaluate")]
        return (training or self.starts)[-1]

    @property
    def seconds(self) -> float:
        """Seconds of wall time from each start to its last record, summed."""
        return sum(start.last_time - start.time for start in self.starts)

    @cached_property
    def summary(self) -> dict[str, float]:
        """The metrics of the run, computed from those of its epochs by `metrics.summarize`."""
        return summarize([sample.metrics for sample in self.epochs])

    @property
    def names(self) -> dict[str, None]:
        """Every metric that the report has, as the keys of a dictionary."""
        return dict.fromkeys(name for s in (*self.steps, *self.epochs) for name in s.metrics)


def read_history(path: Path) -> History:
    """Read a workspace or a report file, of this project or of the original.

    Raises:
      UserError: there is no report, or it is damaged.
    """
    report = _find_report(path)
    plan = _read_plan(report.parent / PLAN_NAME)
    parameters: list[tuple[float, Mapping[str, Any]]] = []
    times: list[float] = []
    found: dict[Position, dict[str, float | None]] = {}
    for time, position, data in _entries(report):
        times.append(time)
        if position is None:
            parameters.append((time, data))
        else:
            known = {_OLD_NAMES.get(name, name): _finite(value) for name, value in data.items()}
            found.setdefault(position, {}).update(known)
    if not parameters and not found:
        raise UserError(f"{report} has no records of a run: name a workspace or another report")
    iterations = [position[1] for position in found if len(position) > 1]
    per_epoch = plan.get("steps_per_epoch") or max([1, *iterations])
    return History(
        path=report,
        name=printable(report.absolute().parent.name),
        starts=_starts(parameters, times),
        steps=_samples({p: m for p, m in found.items() if len(p) == 2}, per_epoch),
        epochs=_samples(_with_evaluations(found, per_epoch), per_epoch),
        ended=() in found,
        plan=plan,
    )


def _find_report(path: Path) -> Path:
    """The report file in a workspace; `path` itself if it is a file.

    Raises:
      UserError: there is none.
    """
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path} does not exist: name a workspace or a report file")
        return path
    if (path / JSONL_NAME).exists():
        return path / JSONL_NAME
    for file in sorted(path.glob("*.json")):
        with file.open("rb") as opened:
            if opened.read(len(PREFIX)) == PREFIX.encode():
                return file
    raise UserError(f"{path} has no report ({JSONL_NAME}): name a workspace or a report file")


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plan if isinstance(plan, dict) else {}


def _entries(report: Path) -> Iterator[tuple[float, Position | None, Mapping[str, Any]]]:
    """Time, position (None: the options) and data of the records of either format.

    Raises:
      UserError: the time or the position of a record is missing or wrong.
    """
    for record in read_report(report):
        data = record.get("metrics", record.get("data"))
        if isinstance(data, dict) and ("event" in record or "step" in record):
            key = key_of(record)
            try:
                time = float(record["time" if "event" in record else "timestamp"])
                position = tuple(map(int, key)) if isinstance(key, tuple) else None
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{report} has a record whose time or step is missing or wrong: name another "
                    "report"
                ) from error
            yield time, position, data


def _starts(
    parameters: list[tuple[float, Mapping[str, Any]]], times: list[float]
) -> tuple[RunStart, ...]:
    """One start for each record of options; the original's two records belong to its only start.

    A report without options has one start, too.
    """
    parameters = parameters or [(min(times), {})]
    if any("model.arch" not in data for _, data in parameters):
        merged = {name: value for _, data in parameters for name, value in data.items()}
        parameters = [(parameters[0][0], merged)]
    starts = []
    for (time, data), (end, _) in pairwise([*parameters, (math.inf, {})]):
        last = max((t for t in times if time <= t < end), default=time)
        about = {
            name: data[name]
            for name, kind in _ABOUT_THE_START.items()
            if isinstance(data.get(name), kind)
        }
        options = {name: value for name, value in data.items() if name not in about}
        starts.append(RunStart(time, last, options, **about))
    return tuple(starts)


def _with_evaluations(
    found: dict[Position, dict[str, float | None]], per_epoch: int
) -> dict[Position, dict[str, float | None]]:
    """The records of epochs, and evaluations without an epoch record at the same position."""
    epochs: dict[Position, dict[str, float | None]]
    epochs = {p: m for p, m in found.items() if len(p) == 1}
    ends = {_epochs(p, per_epoch) for p in epochs}
    alone = {p: m for p, m in found.items() if len(p) == 3 and _epochs(p, per_epoch) not in ends}
    return epochs | alone


def _samples(found: dict[Position, dict[str, float | None]], per_epoch: int) -> tuple[Sample, ...]:
    samples = (Sample(_epochs(position, per_epoch), metrics) for position, metrics in found.items())
    return tuple(sorted(samples, key=lambda sample: sample.epochs))


def _epochs(position: Position, per_epoch: int) -> float:
    """Epochs trained until a position."""
    return position[0] + 1 if len(position) == 1 else position[0] + position[1] / per_epoch


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, _NUMBER) and math.isfinite(value) else None

"""The sinks of a report: a file in DLLogger's format, like the original's, and JSON lines.

docs/report.md documents both files. The other sinks are in run_page.py and trackers.py.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from seresnext_jax.errors import UserError
from seresnext_jax.output import write_whole
from seresnext_jax.report.metrics import find_metric

PREFIX = "DLLL "
Position = tuple[int, ...]
"""(epoch,), (epoch, iteration), (epoch, iteration, val_iteration), or () for the whole run."""

_POSITION = ("epoch", "iteration", "val_iteration")

Event = Literal["parameters", "train", "evaluation", "epoch", "summary"]


@dataclass(frozen=True)
class Record:
    """One entry of the report."""

    event: Event
    position: Position | None
    """None for ``parameters``."""
    step: int | None
    """Optimizer steps since the run began; None for ``parameters`` and ``summary``."""
    data: Mapping[str, Any]
    """The options for ``parameters``, otherwise metrics; None: a value that is not finite."""


class Sink(Protocol):
    """A place that a run reports to."""

    def write(self, record: Record) -> None:
        """Write the next record."""


class ReportFile(ABC):
    """A file with one JSON record per line; it is closed after each record, but not fsynced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = time.time()
        self._kept: set[Position | str] = set()
        """Positions recorded by earlier starts, and metrics whose metadata is in the file."""

    @abstractmethod
    def lines(self, record: Record) -> list[str]:
        """A record as lines of the file."""

    def keep(self, wanted: Callable[[Position], bool]) -> None:
        """Drop the records whose position is not `wanted`, and a last line that a crash cut short.

        Raises:
          UserError: another line is not a record, or the file can't be written.
        """
        self._kept.clear()
        if not self.path.exists():
            return
        lines = []
        for line, record in _parse_lines(self.path):
            key = key_of(record)
            if isinstance(key, str) or wanted(key):
                lines.append(line + "\n")
                self._kept.add(key)
        with writing(self.path):
            write_whole(self.path, "".join(lines))

    def write(self, record: Record) -> None:
        """Append a record.

        It replaces a record of an earlier start at the same position. Training also removes an
        earlier start's summary; otherwise that summary stays.
        """
        if record.event == "summary" and () in self._kept:
            return
        outdated = {record.position} | ({()} if record.event in ("train", "epoch") else set())
        if self._kept & outdated:
            self.keep(lambda position: position not in outdated)
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in self.lines(record)))


class DLLoggerFile(ReportFile):
    """A file in the format that the original writes with NVIDIA's DLLogger."""

    def lines(self, record: Record) -> list[str]:
        """Metadata of new metrics, then the metrics, with the verbose ones in a second line."""
        if record.position is None:
            return [self._line("LOG", step="PARAMETER", data=dict(record.data))]
        lines = []
        found = {name: find_metric(name) for name in record.data}
        for name, metric in found.items():
            if metric.meaning and name not in self._kept:
                self._kept.add(name)
                metadata = {"unit": metric.unit, "format": metric.form} if metric.form else {}
                lines.append(self._line("METADATA", metric=name, metadata=metadata))
        for verbose in (False, True):
            data = {k: v for k, v in record.data.items() if found[k].verbose == verbose}
            if data:
                lines.append(self._line("LOG", step=record.position, data=data))
        return lines

    def _line(self, kind: str, **body: Any) -> str:
        now = time.time()
        record = {
            "timestamp": f"{now:.6f}",
            "datetime": str(datetime.fromtimestamp(now, UTC)),
            "elapsedtime": f"{now - self._started:.6f}",
            "type": kind,
        }
        return PREFIX + json.dumps(record | body, allow_nan=False)


class JsonLinesFile(ReportFile):
    """Plain JSON lines."""

    def lines(self, record: Record) -> list[str]:
        """One line."""
        plain: dict[str, Any] = {"time": round(time.time(), 3), "event": record.event}
        if record.position is None:
            plain |= {"data": dict(record.data)}
        else:
            plain |= dict(zip(_POSITION, record.position, strict=False))
            plain |= {} if record.step is None else {"step": record.step}
            plain |= {"metrics": dict(record.data)}
        return [json.dumps(plain, allow_nan=False)]


def read_report(path: Path) -> list[dict[str, Any]]:
    """The records of a report: either file of a run, or one that the original wrote.

    A last line that a crash cut short is left out.

    Raises:
      UserError: another line is not a record.
    """
    return [record for _, record in _parse_lines(path)]


def move_aside(*paths: Path) -> None:
    """Rename the files that exist to ``NAME.1``, or to the first number free for all of them."""
    number = 1
    while any(path.with_name(f"{path.name}.{number}").exists() for path in paths):
        number += 1
    for path in paths:
        if path.exists():
            path.rename(path.with_name(f"{path.name}.{number}"))


def _parse_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate([*lines, last], start=1):
        try:
            record = json.loads(line.removeprefix(PREFIX))
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            yield line, record
        elif number <= len(lines):
            raise UserError(f"{path}, line {number} is not a report record: move the file away")


def key_of(record: dict[str, Any]) -> Position | str:
    """The position of a record; for metadata the metric's name, and "" for the options."""
    if record.get("event", "parameters") != "parameters":
        return tuple(record[name] for name in _POSITION if name in record)
    step = record.get("step")
    return tuple(step) if isinstance(step, list) else str(record.get("metric", ""))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into an error that names `path`, a file or folder.

    Raises:
      UserError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        fix = "free space there, change its permissions or choose another --workspace"
        raise UserError(f"the report {path} can't be written ({error.strerror}): {fix}") from error

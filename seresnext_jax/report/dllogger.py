"""The report's two files: DLLogger's lines, as the original writes them, and plain JSON lines.

docs/report.md documents both. A line is on disk as soon as it is written; a resumed run drops the
lines behind its checkpoint, so that each step is reported exactly once.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seresnext_jax.errors import UserError
from seresnext_jax.report.meters import description, is_verbose

PREFIX = "DLLL "
JSONL_NAME = "report.jsonl"
Metrics = Mapping[str, float]
Position = tuple[int, ...]
"""() of the run, (epoch,), (epoch, iteration) or (epoch, iteration, val_iteration)."""

_POSITION_NAMES = ("epoch", "iteration", "val_iteration")


class Report:
    """Writes ``raport_file`` and ``report.jsonl`` in a run's folder."""

    def __init__(
        self,
        folder: Path,
        raport_file: str,
        *,
        steps_per_epoch: int,
        keep_until_step: int | None,
        enabled: bool = True,
    ) -> None:
        """Open the files.

        Args:
          steps_per_epoch: to count steps over the whole run.
          keep_until_step: the step that a resumed run continues from; what was reported after it
            is dropped. None: a new run; files of an earlier one are renamed.
          enabled: False on all processes but one.

        Raises:
          UserError: the files can't be written, or one that is continued is no report.
        """
        self.dlll_path = folder / raport_file
        self.jsonl_path = folder / JSONL_NAME
        self._steps_per_epoch = steps_per_epoch
        self._enabled = enabled
        self._started = time.time()
        self._described: set[str] = set()
        self._kept: set[Position] = set()
        if self.dlll_path == self.jsonl_path:
            raise UserError(f"--raport-file {raport_file} is the second report: choose another")
        if not enabled:
            return
        if keep_until_step is None:
            _move_aside(self.dlll_path, self.jsonl_path)
        else:
            self._continue(keep_until_step)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Record the configuration."""
        line = self._dlll("LOG", step="PARAMETER", data=dict(values))
        self._append([line], {"event": "parameters", "data": dict(values)})

    def train(self, epoch: int, iteration: int, metrics: Metrics) -> None:
        """Record the mean since the last such record; `iteration` counts from 1 in its epoch."""
        self._log("train", (epoch, iteration), metrics)

    def evaluation(self, epoch: int, iteration: int, val_iteration: int, metrics: Metrics) -> None:
        """Record an evaluation after `val_iteration` batches."""
        self._log("evaluation", (epoch, iteration, val_iteration), metrics)

    def epoch(self, epoch: int, metrics: Metrics) -> None:
        """Record an epoch's means and its evaluation."""
        self._log("epoch", (epoch,), metrics)

    def summary(self, metrics: Metrics) -> None:
        """Record the run's outcome."""
        self._log("summary", (), metrics)

    def _log(self, event: str, position: Position, metrics: Metrics) -> None:
        if position in self._kept:  # stopped between an epoch's record and its checkpoint
            self._kept.remove(position)
            self._rewrite(lambda other: other != position)
        lines = []
        for name in metrics:
            described = description(name)
            if described and name not in self._described:
                self._described.add(name)
                lines.append(self._dlll("METADATA", metric=name, metadata=described))
        for verbose in (False, True):
            data = {k: _plain(v) for k, v in metrics.items() if is_verbose(k) == verbose}
            if data:
                lines.append(self._dlll("LOG", step=position, data=data))
        plain: dict[str, Any] = dict(zip(_POSITION_NAMES, position, strict=False))
        if position:
            plain["step"] = self._global_step(position)
        plain["metrics"] = {name: _plain(value) for name, value in metrics.items()}
        self._append(lines, {"event": event} | plain)

    def _dlll(self, kind: str, **body: Any) -> str:
        now = datetime.now(UTC)
        record = {
            "timestamp": f"{now.timestamp():.6f}",
            "datetime": str(now),
            "elapsedtime": f"{now.timestamp() - self._started:.6f}",
            "type": kind,
        }
        return PREFIX + json.dumps(record | body, allow_nan=False)

    def _append(self, dlll_lines: list[str], plain: dict[str, Any]) -> None:
        if self._enabled:
            plain = {"time": round(time.time(), 3)} | plain
            _write(self.dlll_path, dlll_lines, "a")
            _write(self.jsonl_path, [json.dumps(plain, allow_nan=False)], "a")

    def _continue(self, until: int) -> None:
        """Drop what was reported behind step `until`, and lines that a crash cut short."""
        self._rewrite(lambda position: position != () and self._global_step(position) <= until)
        if self.dlll_path.exists():
            records = read_report(self.dlll_path)
            self._described = {r["metric"] for r in records if r.get("type") == "METADATA"}
            self._kept = {p for r in records if (p := _position(r)) is not None}

    def _rewrite(self, keep: Callable[[Position], bool]) -> None:
        """Keep only the records whose position `keep` accepts, and those that have none."""
        for path in (self.dlll_path, self.jsonl_path):
            if path.exists():
                lines = _parse_lines(path)
                kept = [ln for ln, r in lines if (p := _position(r)) is None or keep(p)]
                temporary = path.with_name(path.name + ".tmp")
                _write(temporary, kept, "w")
                os.replace(temporary, path)

    def _global_step(self, position: Position) -> int:
        if len(position) == 1:
            return (position[0] + 1) * self._steps_per_epoch
        return position[0] * self._steps_per_epoch + position[1]


def read_report(path: Path) -> list[dict[str, Any]]:
    """The records of either report file, or of one the original wrote.

    A last line that a crash cut short is left out.

    Raises:
      UserError: another line is no record.
    """
    return [record for _, record in _parse_lines(path)]


def _parse_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
    parsed = []
    for number, line in enumerate([*lines, last] if last else lines, start=1):
        try:
            record = json.loads(line.removeprefix(PREFIX))
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            parsed.append((line, record))
        elif number <= len(lines):
            raise UserError(f"{path}, line {number} is no report record: move the file away")
    return parsed


def _position(record: dict[str, Any]) -> Position | None:
    """Where a record of either file belongs; None: to no step (parameters, metadata)."""
    if "event" in record:
        names = [name for name in _POSITION_NAMES if name in record]
        return None if record["event"] == "parameters" else tuple(record[name] for name in names)
    step = record.get("step")
    return tuple(step) if isinstance(step, list) else None


def _move_aside(*paths: Path) -> None:
    """Rename the files to the first number that none of them has taken."""
    number = 1
    while any(path.with_name(f"{path.name}.{number}").exists() for path in paths):
        number += 1
    for path in paths:
        if path.exists():
            path.rename(path.with_name(f"{path.name}.{number}"))


def _write(path: Path, lines: list[str], mode: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; make room there or choose another --workspace"
        ) from error


def _plain(value: float) -> float | None:
    """A number that JSON has; None where it has none."""
    return float(value) if math.isfinite(value) else None

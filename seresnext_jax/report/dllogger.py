"""The report's two files: DLLogger's lines, as the original writes them, and plain JSON lines.

docs/report.md documents both. A line is on disk as soon as it is written; a resumed run drops the
lines behind its checkpoint, so that each step is reported exactly once.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seresnext_jax.errors import UserError
from seresnext_jax.report.files import writing
from seresnext_jax.report.meters import description, is_verbose, json_number

PREFIX = "DLLL "
JSONL_NAME = "report.jsonl"
Metrics = Mapping[str, float]
Position = tuple[int, ...]
"""() of the run, (epoch,), (epoch, iteration) or (epoch, iteration, val_iteration)."""

_POSITION = ("epoch", "iteration", "val_iteration")


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
            is dropped, and the summary as soon as training goes on. None: a new run; files of an
            earlier one are renamed.
          enabled: False on all processes but one.

        Raises:
          UserError: the files can't be written (this and every later call), `raport_file` is a
            folder or the second report, or a file that is continued is no report.
        """
        self._folder = folder
        self.dlll_path = folder / raport_file
        self.jsonl_path = folder / JSONL_NAME
        self._steps_per_epoch = steps_per_epoch
        self._enabled = enabled
        self._started = time.time()
        self._described: set[str] = set()
        self._kept: set[Position | None] = set()
        if self.dlll_path == self.jsonl_path:
            raise UserError(f"--raport-file {raport_file} is the second report: choose another")
        if not enabled:
            return
        with writing(folder):
            for path in (self.dlll_path, self.jsonl_path):
                path.parent.mkdir(parents=True, exist_ok=True)
            if self.dlll_path.is_dir():  # it would be moved aside with all that it holds
                raise UserError(f"--raport-file {raport_file!r} is a folder: give a file's name")
            if keep_until_step is None:
                _move_aside(self.dlll_path, self.jsonl_path)
            else:
                self._rewrite(lambda at: at == () or self._step(at) <= keep_until_step)

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

    @property
    def has_summary(self) -> bool:
        """Whether the files that are continued have a summary that stands."""
        return () in self._kept

    def attach(self, name: str, text: str) -> None:
        """Write a file of its own beside the report."""
        if self._enabled:
            with writing(self._folder / name):
                (self._folder / name).write_text(text, encoding="utf-8")

    def _log(self, event: str, position: Position, metrics: Metrics) -> None:
        # The run was stopped between this record and its checkpoint, or goes on after its summary.
        outdated = self._kept & ({position, ()} if event in ("train", "epoch") else {position})
        if outdated:
            self._rewrite(lambda other: other not in outdated)
        lines = []
        for name in metrics:
            described = description(name)
            if described and name not in self._described:
                self._described.add(name)
                lines.append(self._dlll("METADATA", metric=name, metadata=described))
        for verbose in (False, True):
            data = {k: json_number(v) for k, v in metrics.items() if is_verbose(k) == verbose}
            if data:
                lines.append(self._dlll("LOG", step=position, data=data))
        plain: dict[str, Any] = {"event": event} | dict(zip(_POSITION, position, strict=False))
        if position:
            plain["step"] = self._step(position)
        self._append(lines, plain | {"metrics": {k: json_number(v) for k, v in metrics.items()}})

    def _dlll(self, kind: str, **body: Any) -> str:
        now = time.time()
        record = {
            "timestamp": f"{now:.6f}",
            "datetime": str(datetime.fromtimestamp(now, UTC)),
            "elapsedtime": f"{now - self._started:.6f}",
            "type": kind,
        }
        return PREFIX + json.dumps(record | body, allow_nan=False)

    def _append(self, dlll_lines: list[str], plain: dict[str, Any]) -> None:
        plain = {"time": round(time.time(), 3)} | plain
        plain_lines = [json.dumps(plain, allow_nan=False)]
        for path, lines in ((self.dlll_path, dlll_lines), (self.jsonl_path, plain_lines)):
            if self._enabled:
                with writing(path), path.open("a", encoding="utf-8") as file:
                    file.write("".join(line + "\n" for line in lines))

    def _rewrite(self, keep: Callable[[Position], bool]) -> None:
        """Drop what lies at a position that `keep` refuses, and lines that a crash cut short."""
        self._kept.clear()
        for path in filter(Path.exists, (self.dlll_path, self.jsonl_path)):
            kept = []
            for line, record in _parse_lines(path):
                position = _position(record)
                if position is None or keep(position):
                    kept.append(line + "\n")
                    self._kept.add(position)
                    self._described.add(record.get("metric", ""))
            temporary = path.with_name(path.name + ".tmp")
            with writing(path):
                temporary.write_text("".join(kept), encoding="utf-8")
                os.replace(temporary, path)

    def _step(self, position: Position) -> int:
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
            raise UserError(f"{path}, line {number} is no report record: move the file away")


def _position(record: dict[str, Any]) -> Position | None:
    """Where a record of either file belongs; None: to no step (parameters, metadata)."""
    if "event" in record:
        position = tuple(record[name] for name in _POSITION if name in record)
        return None if record["event"] == "parameters" else position
    return tuple(record["step"]) if isinstance(record.get("step"), list) else None


def _move_aside(*paths: Path) -> None:
    """Rename the files to the first number that none of them has taken."""
    number = 1
    while any(path.with_name(f"{path.name}.{number}").exists() for path in paths):
        number += 1
    for path in paths:
        if path.exists():
            path.rename(path.with_name(f"{path.name}.{number}"))

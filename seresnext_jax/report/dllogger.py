"""The report's two files: DLLogger's lines, as the original writes them, and plain JSON lines.

docs/report.md documents both. A line is on disk as soon as it is written; a resumed run drops the
lines behind its checkpoint, so that each step is reported exactly once.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PREFIX = "DLLL "
JSONL_NAME = "report.jsonl"
Metrics = Mapping[str, float]

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
    "compute_latency": ("s", ":.5f"),
    "top": ("%", ":.2f"),
}
_VERBOSE = ("data_time", "compute_time", "compute_latency_at")
"""Metrics of the second record of an event, which the original keeps off the console."""


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
        """
        self.dlll_path = folder / raport_file
        self.jsonl_path = folder / JSONL_NAME
        self._steps_per_epoch = steps_per_epoch
        self._enabled = enabled
        self._started = time.time()
        self._described: set[str] = set()
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self.dlll_path, self.jsonl_path):
            if keep_until_step is None:
                _move_aside(path)
            elif path.exists():
                self._truncate(path, keep_until_step)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Record the configuration."""
        self._write_dlll("LOG", step="PARAMETER", data=dict(values))
        self._write_jsonl({"event": "parameters", "data": dict(values)})

    def train(self, epoch: int, iteration: int, metrics: Metrics) -> None:
        """Record the mean since the last such record; `iteration` counts from 1 in its epoch."""
        self._log("train", [epoch, iteration], metrics)

    def evaluation(self, epoch: int, iteration: int, val_iteration: int, metrics: Metrics) -> None:
        """Record an evaluation after `val_iteration` batches."""
        self._log("evaluation", [epoch, iteration, val_iteration], metrics)

    def epoch(self, epoch: int, metrics: Metrics) -> None:
        """Record an epoch's means and its evaluation."""
        self._log("epoch", [epoch], metrics)

    def summary(self, metrics: Metrics) -> None:
        """Record the run's outcome."""
        self._log("summary", [], metrics)

    def _log(self, event: str, step: list[int], metrics: Metrics) -> None:
        for name in metrics:
            if name not in self._described:
                self._described.add(name)
                unit, form = _unit(name)
                metadata = {"unit": unit, "format": form}
                self._write_dlll("METADATA", metric=name, metadata=metadata)
        default = {name: value for name, value in metrics.items() if not _is_verbose(name)}
        verbose = {name: value for name, value in metrics.items() if _is_verbose(name)}
        for data in (default, verbose):
            if data:
                self._write_dlll("LOG", step=step, data=_plain(data))
        record: dict[str, Any] = {"event": event}
        names = ("epoch", "iteration", "val_iteration")
        record |= dict(zip(names, step, strict=False))
        if step:
            record["step"] = _global_step(step, self._steps_per_epoch)
        self._write_jsonl(record | {"metrics": _plain(metrics)})

    def _write_dlll(self, kind: str, **body: Any) -> None:
        now = time.time()
        record = {
            "timestamp": f"{now:.6f}",
            "datetime": str(datetime.fromtimestamp(now, UTC)),
            "elapsedtime": f"{now - self._started:.6f}",
            "type": kind,
            **body,
        }
        self._append(self.dlll_path, PREFIX + json.dumps(record))

    def _write_jsonl(self, record: dict[str, Any]) -> None:
        self._append(self.jsonl_path, json.dumps({"time": round(time.time(), 3)} | record))

    def _append(self, path: Path, line: str) -> None:
        if self._enabled:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def _truncate(self, path: Path, until: int) -> None:
        """Drop the lines behind step `until`, and a line that a crash cut short."""
        kept = []
        for line, record in _parse_lines(path):
            step = record.get("step")
            if isinstance(step, list):
                step = _global_step(step, self._steps_per_epoch) if step else math.inf
            if record.get("event") == "summary":
                step = math.inf
            if not isinstance(step, (int, float)) or step <= until:
                kept.append(line)
        temporary = path.with_suffix(path.suffix + ".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)


def read_report(path: Path) -> list[dict[str, Any]]:
    """The records of a report file, of this project or of the original."""
    return [record for _, record in _parse_lines(path)]


def _parse_lines(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield line, json.loads(line.removeprefix(PREFIX))
        except json.JSONDecodeError:
            continue


def _global_step(step: list[int], steps_per_epoch: int) -> int:
    if len(step) == 1:
        return (step[0] + 1) * steps_per_epoch
    return step[0] * steps_per_epoch + step[1]


def _move_aside(path: Path) -> None:
    if path.exists():
        number = 1
        while (target := path.with_name(f"{path.name}.{number}")).exists():
            number += 1
        path.rename(target)


def _unit(name: str) -> tuple[str | None, str]:
    leaf = name.split(".")[-1]
    known = [key for key in _UNITS if leaf.startswith(key)]
    return _UNITS[max(known, key=len)] if known else (None, "")


def _is_verbose(name: str) -> bool:
    return name.split(".")[-1].startswith(_VERBOSE)


def _plain(metrics: Metrics) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}

"""The report of a run: every record goes to every sink."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seresnext_jax.report.names import HTML_NAME, JSONL_NAME, TENSORBOARD_NAME, dllogger_path
from seresnext_jax.report.run_page import RunPage
from seresnext_jax.report.sinks import (
    DLLoggerFile,
    Event,
    JsonLinesFile,
    Position,
    Record,
    Sink,
    move_aside,
    writing,
)
from seresnext_jax.report.trackers import TRACKERS

Metrics = Mapping[str, float]


class Report:
    """Passes the records of a run on to each of its `sinks`."""

    def __init__(
        self,
        folder: Path,
        raport_file: str,
        *,
        steps_per_epoch: int,
        keep_until_step: int | None,
        trackers: Sequence[str] = (),
        enabled: bool = True,
    ) -> None:
        """Open the files ``raport_file`` and ``report.jsonl`` in a run's folder; add its page.

        Args:
          steps_per_epoch: to count steps over the whole run.
          keep_until_step: the step that a resumed run continues from; later records are dropped,
            and the summary is dropped once training continues. None: a new run; files of an
            earlier run are renamed.
          trackers: names of `TRACKERS` to report to, too.
          enabled: False on all processes but one.

        Raises:
          UserError: the files can't be written (this and every later call), `raport_file` is a
            folder or another file of the run, or a file to continue is not a report.
        """
        self.folder = folder
        self.dlll_path = dllogger_path(folder, raport_file)
        self.jsonl_path = folder / JSONL_NAME
        self.sinks: list[Sink] = []
        self._steps_per_epoch = steps_per_epoch
        self._enabled = enabled
        if not enabled:
            return
        files = DLLoggerFile(self.dlll_path), JsonLinesFile(self.jsonl_path)
        with writing(folder):
            for file in files:
                file.path.parent.mkdir(parents=True, exist_ok=True)
            if keep_until_step is None:
                move_aside(*(file.path for file in files), folder / TENSORBOARD_NAME)
            else:
                for file in files:
                    file.keep(lambda at: at == () or self._step(at) <= keep_until_step)
        self.sinks += [*files, RunPage(self.jsonl_path, folder / HTML_NAME)]
        self.sinks += [TRACKERS[name](folder, keep_until_step) for name in trackers]

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Record the configuration."""
        self._write("parameters", None, values)

    def train(self, epoch: int, iteration: int, metrics: Metrics) -> None:
        """Record the means since the last such record; `iteration` counts from 1 in the epoch."""
        self._write("train", (epoch, iteration), metrics)

    def evaluation(self, epoch: int, iteration: int, val_iteration: int, metrics: Metrics) -> None:
        """Record an evaluation after `val_iteration` batches."""
        self._write("evaluation", (epoch, iteration, val_iteration), metrics)

    def epoch(self, epoch: int, metrics: Metrics) -> None:
        """Record an epoch's means and its evaluation."""
        self._write("epoch", (epoch,), metrics)

    def summary(self, metrics: Metrics) -> None:
        """Record the summary of the run; a file that already has one keeps it."""
        self._write("summary", (), metrics)

    def attach(self, name: str, text: str) -> None:
        """Write another file next to the report."""
        if self._enabled:
            with writing(self.folder / name):
                (self.folder / name).write_text(text, encoding="utf-8")

    def _write(self, event: Event, position: Position | None, data: Mapping[str, Any]) -> None:
        if position is not None:
            data = {name: float(v) if math.isfinite(v) else None for name, v in data.items()}
        record = Record(event, position, self._step(position) if position else None, data)
        for sink in self.sinks:
            sink.write(record)

    def _step(self, position: Position) -> int:
        """Optimizer steps from the beginning of the run to a position."""
        if len(position) == 1:
            return (position[0] + 1) * self._steps_per_epoch
        return position[0] * self._steps_per_epoch + position[1]

"""The report of a run: every record goes to two files and to the other sinks."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seresnext_jax.errors import printable
from seresnext_jax.output import write_whole
from seresnext_jax.report.names import HTML_NAME, JSONL_NAME, TENSORBOARD_NAME, dllogger_path
from seresnext_jax.report.run_page import RunPage
from seresnext_jax.report.sinks import (
    DLLoggerFile,
    Event,
    JsonLinesFile,
    Position,
    Record,
    ReportFile,
    Sink,
    move_aside,
    writing,
)
from seresnext_jax.report.trackers import TRACKERS

Metrics = Mapping[str, float]


class Report:
    """Writes the records of a run to its `files` and passes them on to the `others`.

    The run ends if a file can't be written. Another sink that fails is removed with a warning.
    """

    def __init__(
        self,
        folder: Path,
        raport_file: str,
        *,
        steps_per_epoch: int,
        keep_until_step: int | None,
        warn: Callable[[str], None],
        trackers: Sequence[str] = (),
        enabled: bool = True,
    ) -> None:
        """Open the report files, and add the sinks for ``report.html`` and the trackers.

        Args:
          folder: the workspace of the run.
          raport_file: the name of the DLLogger file; the other one is ``report.jsonl``.
          steps_per_epoch: to count steps over the whole run.
          keep_until_step: the step that a resumed run continues from; later records are dropped,
            and the summary is dropped once training continues. None: a new run; files of an
            earlier run are renamed.
          warn: prints a warning.
          trackers: names in `TRACKERS`, also to report to.
          enabled: False: write nothing. Only one process writes the report.

        Raises:
          UserError: the files can't be written (all methods raise this), `raport_file` is a folder
            or another file of the run, or a file to continue is not a report.
        """
        self.folder = folder
        self.dlll_path = dllogger_path(folder, raport_file)
        self.jsonl_path = folder / JSONL_NAME
        self.files: tuple[ReportFile, ...] = ()
        self.others: dict[str, Sink] = {}
        """The other sinks, by the names that warnings use."""
        self._steps_per_epoch = steps_per_epoch
        self._warn = warn
        self._enabled = enabled
        if not enabled:
            return
        self.files = DLLoggerFile(self.dlll_path), JsonLinesFile(self.jsonl_path)
        with writing(folder):
            for file in self.files:
                file.path.parent.mkdir(parents=True, exist_ok=True)
            if keep_until_step is None:
                move_aside(*(file.path for file in self.files), folder / TENSORBOARD_NAME)
            else:
                for file in self.files:
                    file.keep(lambda at: at == () or self._step(at) <= keep_until_step)
        self.others[HTML_NAME] = RunPage(self.jsonl_path, folder / HTML_NAME)
        self.others |= {name: TRACKERS[name](folder, keep_until_step) for name in trackers}

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Record the configuration."""
        self._write("parameters", None, values)

    def train(self, epoch: int, iteration: int, metrics: Metrics) -> None:
        """Record means since the last `train` record; `iteration` counts from 1 in the epoch."""
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
                write_whole(self.folder / name, text)

    def _write(self, event: Event, position: Position | None, data: Mapping[str, Any]) -> None:
        if position is not None:
            data = {name: float(v) if math.isfinite(v) else None for name, v in data.items()}
        record = Record(event, position, self._step(position) if position else None, data)
        for file in self.files:
            file.write(record)
        for name, sink in list(self.others.items()):
            try:
                sink.write(record)
            except Exception as error:  # whatever a tracker's package raises
                del self.others[name]
                reason = printable(error) or type(error).__name__
                self._warn(f"{name} is no longer updated, the run continues without it: {reason}")

    def _step(self, position: Position) -> int:
        """Optimizer steps from the beginning of the run to a position."""
        if len(position) == 1:
            return (position[0] + 1) * self._steps_per_epoch
        return position[0] * self._steps_per_epoch + position[1]

"""Sinks for experiment trackers: TensorBoard and Weights & Biases.

Both get the training metrics as ``train/loss`` and so on, those of an evaluation as ``val/top1``,
and the means of an epoch as ``train_epoch/loss``. The x axis is the number of optimizer steps.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seresnext_jax.errors import UserError
from seresnext_jax.output import write_whole
from seresnext_jax.report.names import TENSORBOARD_NAME, WANDB_NAME
from seresnext_jax.report.sinks import Record, Sink, writing

_NO_STEP = 2**62
"""More steps than any run has."""


class TensorBoard:
    """Event files in ``tensorboard/`` in the workspace."""

    def __init__(self, workspace: Path, resumed_step: int | None) -> None:
        """Open an event file.

        Args:
          workspace: the run's folder.
          resumed_step: TensorBoard ignores what an earlier start wrote after this step. None: a new
            run.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder = workspace / TENSORBOARD_NAME
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # SummaryWriter has a thread: if a write fails, the thread ends, and the run would wait
            # for it forever.
            self._file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
            if resumed_step is not None:
                after = min(resumed_step, _NO_STEP) + 1
                self._add(step=after, session_log=SessionLog(status=SessionLog.START))

    def write(self, record: Record) -> None:
        """Write the metrics of a record, or the options as text, and flush the file."""
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import text

        if record.event == "parameters":
            options = json.dumps(dict(record.data), indent=2)
            self._add(summary=text("options", f"```\n{options}\n```"))
        elif found := tracked(record):
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in found.items()]
            self._add(step=record.step, summary=Summary(value=values))

    def _add(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(wall_time=time.time(), **content))
        self._file.flush()


class WandB:
    """A run of Weights & Biases; its config is the options, its summary that of the report.

    WANDB_PROJECT names the project, and WANDB_MODE=offline needs no account.
    """

    def __init__(self, workspace: Path, resumed_step: int | None) -> None:
        """Start a run of Weights & Biases; if resumed, continue the run of the workspace.

        Raises:
          UserError: there is no account, or no connection to it.
        """
        import wandb

        id_file = workspace / WANDB_NAME / "run-id"
        with writing(id_file):
            id_file.parent.mkdir(parents=True, exist_ok=True)
            if resumed_step is None or not id_file.exists():
                write_whole(id_file, secrets.token_hex(4))
            known = id_file.read_text(encoding="utf-8")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "seresnext_jax"),
                name=workspace.absolute().name,
                id=known,
                resume="allow",
                dir=str(workspace),
                settings=wandb.Settings(console="off"),  # a progress bar would flood its log
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"--report-to wandb: {error} Or set WANDB_MODE=offline to log without an account"
            ) from error

    def write(self, record: Record) -> None:
        """Log the metrics of a record, set the config, or set the summary."""
        if record.event == "parameters":
            self._run.config.update(dict(record.data), allow_val_change=True)
        elif record.event == "summary":
            self._run.summary.update(dict(record.data))
        elif found := tracked(record):
            self._run.log(found, step=record.step)


_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""The Python package that each tracker needs."""
TRACKERS: dict[str, Callable[[Path, int | None], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
}
"""The trackers by their names for ``--report-to``."""


def check_trackers(names: Sequence[str]) -> None:
    """Check the names and the packages of the trackers.

    Raises:
      UserError: a name is unknown, or its package is missing.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--report-to {name} is unknown: choose from {', '.join(TRACKERS)}")
        if find_spec(_PACKAGES[name]) is None:
            package = _PACKAGES[name]
            raise UserError(
                f"--report-to {name} needs the package {package}: pip install {package}"
            )


def tracked(record: Record) -> dict[str, Any]:
    """The metrics of a record under the trackers' names.

    Empty if the record has no step. Evaluation metrics in an epoch's record are left out, because
    the evaluation has its own record.
    """
    if record.step is None:
        return {}
    found = {}
    for name, value in record.data.items():
        split, _, metric = name.rpartition(".")
        if record.event == "epoch":
            if split != "train":
                continue
            split = "train_epoch"
        if value is not None:
            found[f"{split}/{metric}"] = value
    return found

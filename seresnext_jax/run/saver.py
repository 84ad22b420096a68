"""When a run saves, and what it writes beside the state."""

import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils

from seresnext_jax.checkpoint.progress import Progress
from seresnext_jax.checkpoint.reading import (
    Meta,
    read_checkpoint,
    read_newest,
)
from seresnext_jax.checkpoint.saving import Checkpoints
from seresnext_jax.config import Config, Plan
from seresnext_jax.data.batch import Loader
from seresnext_jax.errors import UserError
from seresnext_jax.report.console import Console
from seresnext_jax.run.start import checkpoints_folder, saves_checkpoints
from seresnext_jax.training.state import TrainState

STEPS_BETWEEN_CLOCKS = 10
"""Steps after which the processes agree again on the minutes since the last save."""


class Saver:
    """The checkpoints of one training run, by its configuration.

    Use as a context manager: an error of a single process leaves it only when the last save is
    whole.
    """

    def __init__(self, config: Config, plan: Plan, loader: Loader, console: Console) -> None:
        self.folder = checkpoints_folder(config)
        self._config = config
        self._plan = plan
        self._loader = loader
        self._console = console
        self._checkpoints: Checkpoints | None = None
        if saves_checkpoints(config):
            self._checkpoints = Checkpoints(self.folder, keep=config.checkpoint.keep)
        self._saved_at = time.monotonic()
        self._owed = False

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error of one process the others are elsewhere, and a save can't end without them.
        if error is None or jax.process_count() == 1:
            self.close()

    def resume(self, start: Path | None, state: TrainState) -> tuple[TrainState, Progress]:
        """The state and progress to start from.

        Args:
          start: what `find_start` found.
          state: a new state, the one to start from if there is nothing to continue.

        Raises:
          UserError: the checkpoint is damaged or does not fit.
        """
        if start is None:
            return state, Progress()
        state, meta = self._newest(state) if start == self.folder else self._named(start, state)
        self._check_plan(meta)
        step = int(state.step)
        self._console.note(
            f"continuing after step {step} (epoch {step // self._plan.steps_per_epoch})"
        )
        return state, Progress.from_json(meta["progress"])

    def _newest(self, state: TrainState) -> tuple[TrainState, Meta]:
        if self._checkpoints is None:  # an evaluation: nothing is changed
            state, meta, broken = read_newest(self.folder, state)
        else:
            state, meta, broken = self._checkpoints.restore_newest(state)
        for line in broken:
            self._console.warn(line)
        return state, meta

    def _named(self, checkpoint: Path, state: TrainState) -> tuple[TrainState, Meta]:
        state, meta = read_checkpoint(checkpoint, state)
        if self._checkpoints is not None:
            later = self._checkpoints.go_back_to(int(state.step))
            if later:
                names = ", ".join(f"{step}.later" for step in later)
                self._console.note(f"the checkpoints behind it are set aside as {names}")
        return state, meta

    def _check_plan(self, meta: Meta) -> None:
        for name in ("global_batch", "steps_per_epoch"):
            saved, here = meta["plan"][name], getattr(self._plan, name)
            if saved != here:
                raise UserError(
                    f"the checkpoint's run had {name} {saved}, this one has {here}: its position "
                    "in the data would be lost; keep the dataset, --prof and the batch sizes (fewer"
                    f" devices: --optimizer-batch-size {meta['plan']['global_batch']})"
                )
        group = meta["plan"]["bn_group_size"]
        if group != self._plan.bn_group_size:
            self._console.warn(
                f"BatchNorm normalised {group} images together, now {self._plan.bn_group_size}: "
                f"to train as before, give --model.bn-group-size {group}"
            )
        if meta["fingerprint"] not in (None, self._loader.fingerprint):
            self._console.warn(
                "the images, the seed or the crop options are not those of the checkpoint's run: "
                "training continues, but not as it would have"
            )

    def due(self, step: int) -> bool:
        """Whether to save after step `step`, besides the ends of epochs."""
        if self._checkpoints is None or step % self._plan.steps_per_epoch == 0:
            return False
        self._owed = self._owed or self._falls_due(step)
        return self._owed

    def _falls_due(self, step: int) -> bool:
        options = self._config.checkpoint
        if options.every_steps and step % options.every_steps == 0:
            return True
        if not options.every_minutes or step % STEPS_BETWEEN_CLOCKS:
            return False
        late = time.monotonic() - self._saved_at >= 60 * options.every_minutes
        return bool(multihost_utils.broadcast_one_to_all(np.bool_(late)))

    def save_if_good(self, state: TrainState, progress: Progress) -> None:
        """Save, unless the last step was not finite: what was saved before may be better.

        The save stays due then.
        """
        if not int(state.bad_steps):
            self.save(state, progress)

    def save(self, state: TrainState, progress: Progress, *, top1: float | None = None) -> None:
        """Start saving; see `Checkpoints.save`."""
        if self._checkpoints is None:
            return
        step = int(state.step)
        meta: Meta = {
            "step": step,
            "epoch": step // self._plan.steps_per_epoch,
            "progress": progress.to_json(),
            "config": asdict(self._config),
            "plan": asdict(self._plan),
            "fingerprint": self._loader.fingerprint,
            "class_names": list(self._loader.class_names),
        }
        self._checkpoints.save(state, meta, top1=top1)
        self._saved_at = time.monotonic()
        self._owed = False

    def close(self) -> None:
        """Wait for the last save; nothing can be saved after it.

        Raises:
          UserError: it failed.
        """
        checkpoints, self._checkpoints = self._checkpoints, None
        if checkpoints is not None:
            checkpoints.close()

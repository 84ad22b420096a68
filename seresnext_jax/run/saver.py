"""Decides when a run saves, and how it continues from a checkpoint."""

import time
from dataclasses import replace
from typing import Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from seresnext_jax.checkpoint.meta import Meta, Progress
from seresnext_jax.checkpoint.save import Checkpoints
from seresnext_jax.checkpoint.store import read_checkpoint, read_newest
from seresnext_jax.config import Config, option_name
from seresnext_jax.data.batch import Loader
from seresnext_jax.errors import UserError
from seresnext_jax.plan import Plan
from seresnext_jax.report.console import Console
from seresnext_jax.report.options import show_value
from seresnext_jax.run.recipe import find_deviations
from seresnext_jax.run.start import (
    Start,
    check_class_names,
    checkpoints_folder,
    saves_checkpoints,
)
from seresnext_jax.training.state import TrainState

STEPS_BETWEEN_CLOCKS = 10
"""Number of steps between checks, by process 0 for all, of the time since the last save."""


class Saver:
    """Saves the checkpoints of one training run.

    Use as a context manager: its exit waits for the last save. With several processes, it does
    not wait after an error.
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

    @property
    def saves(self) -> bool:
        """Whether this run saves checkpoints and `close` was not called."""
        return self._checkpoints is not None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        # After an error, the other processes run other code, and a save needs all of them.
        if error is None or jax.process_count() == 1:
            self.close()

    def resume(self, start: Start, state: TrainState) -> tuple[TrainState, Progress]:
        """The state and progress to start from.

        A run that saves renames the checkpoints after that state: to ``<step>.broken`` if they
        could not be read, to ``<step>.later`` if ``--resume`` names an earlier one.

        Args:
          state: a new state, used if there is nothing to continue.

        Raises:
          UserError: the checkpoint is damaged or does not fit.
        """
        if start.newest_in:
            found, meta, broken = read_newest(start.newest_in, state)
            for line in broken:
                self._console.warn(line)
        elif start.checkpoint:
            found, meta = read_checkpoint(start.checkpoint, state)
        else:
            return state, Progress()
        if meta.config.precision != self._config.precision:  # with another loss scale
            found = replace(found, loss_scale=state.loss_scale)
        self._check_plan(meta)
        check_class_names(
            self._config, start, meta.class_names, self._loader.class_names, self._console
        )
        self._warn_of_changes(meta)
        self._set_aside_after(meta.step, ".broken" if start.newest_in else ".later")
        self._console.note(f"continuing after step {meta.step} (epoch {meta.epoch})")
        self._note_changes(meta)
        return found, meta.progress

    def _set_aside_after(self, step: int, suffix: Literal[".broken", ".later"]) -> None:
        if self._checkpoints is None:
            return
        aside = self._checkpoints.set_aside_after(step, suffix)
        if aside and suffix == ".later":
            names = ", ".join(f"{later}.later" for later in aside)
            self._console.note(f"the later checkpoints are renamed to {names}")

    def _check_plan(self, meta: Meta) -> None:
        for name in ("global_batch", "steps_per_epoch"):
            saved, here = getattr(meta.plan, name), getattr(self._plan, name)
            if saved != here:
                raise UserError(
                    f"the checkpoint's run had {name} {saved}, this one has {here}: its position "
                    "in the data would be lost; keep the dataset, --prof and the batch sizes (with "
                    f"fewer devices give --optimizer-batch-size {meta.plan.global_batch})"
                )

    def _warn_of_changes(self, meta: Meta) -> None:
        group = meta.plan.bn_group_size
        if group != self._plan.bn_group_size:
            self._console.warn(
                f"BatchNorm normalised {group} images together, now {self._plan.bn_group_size}: "
                f"to train as before, give --model.bn-group-size {group}"
            )
        if meta.fingerprint not in (None, self._loader.fingerprint):
            self._console.warn(
                "the images, the seed or the crop options are not those of the checkpoint's run: "
                "training continues, but not as it would have"
            )

    def _note_changes(self, meta: Meta) -> None:
        changed = find_deviations(meta.config, self._config)
        changed.pop("init_from", None)  # read by a new run only
        if changed and not self._config.evaluate:
            text = "; ".join(
                f"{option_name(path)}: {show_value(values['recipe'])} → {show_value(values['run'])}"
                for path, values in changed.items()
            )
            self._console.note(f"options that changed since the checkpoint: {text}")

    def due(self, step: int) -> bool:
        """Whether to save after step `step`; False at the end of an epoch, which is saved anyway.

        All processes must call this after every step. A save stays due until it is done.
        """
        if self._checkpoints is None or step % self._plan.steps_per_epoch == 0:
            return False
        options = self._config.checkpoint
        if options.every_steps and step % options.every_steps == 0:
            self._owed = True
        elif options.every_minutes and step % STEPS_BETWEEN_CLOCKS == 0 and not self._owed:
            late = time.monotonic() - self._saved_at >= 60 * options.every_minutes
            self._owed = bool(multihost_utils.broadcast_one_to_all(np.bool_(late)))
        return self._owed

    def save_if_good(self, state: TrainState, progress: Progress) -> None:
        """Save, unless the last step was not finite; then the save stays due."""
        if not int(state.bad_steps):
            self.save(state, progress)

    def save(self, state: TrainState, progress: Progress, *, top1: float | None = None) -> None:
        """Start saving; see `Checkpoints.save`. Does nothing if `saves` is False.

        Args:
          top1: validation accuracy in percent, if this state was evaluated.
        """
        if self._checkpoints is None:
            return
        step = int(state.step)
        meta = Meta(
            step=step,
            epoch=step // self._plan.steps_per_epoch,
            progress=progress,
            config=self._config,
            plan=self._plan,
            fingerprint=self._loader.fingerprint,
            class_names=self._loader.class_names,
            top1=top1,
        )
        self._checkpoints.save(state, meta)
        self._saved_at = time.monotonic()
        self._owed = False

    def close(self) -> None:
        """Wait for the last save; nothing can be saved afterwards.

        Raises:
          UserError: the save failed.
        """
        checkpoints, self._checkpoints = self._checkpoints, None
        if checkpoints is not None:
            checkpoints.close()

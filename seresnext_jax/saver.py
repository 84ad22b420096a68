"""When a run saves, what it writes beside the state, and where it continues."""

import time
from pathlib import Path
from types import TracebackType

import numpy as np
from jax.experimental import multihost_utils

from seresnext_jax.checkpoint import Checkpoints, Meta, find_checkpoint
from seresnext_jax.config import Config, Plan, to_dict
from seresnext_jax.data.batch import Loader
from seresnext_jax.errors import UserError
from seresnext_jax.progress import Progress
from seresnext_jax.report.console import Console
from seresnext_jax.state import TrainState


class Saver:
    """The checkpoints of one training run, by its configuration.

    Use as a context manager: an error leaves the program only when the last save is whole.
    """

    def __init__(self, config: Config, plan: Plan, loader: Loader, console: Console) -> None:
        self.folder = (Path(config.workspace) / "checkpoints").absolute()
        self._config = config
        self._plan = plan
        self._loader = loader
        self._console = console
        self._checkpoints: Checkpoints | None = None
        if not (config.no_checkpoints or config.evaluate) or config.resume == "auto":
            self._checkpoints = Checkpoints(self.folder, keep=config.checkpoint.keep)
        self._saved_at = time.monotonic()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def resume(self, state: TrainState) -> tuple[TrainState, Progress]:
        """The state and progress to start from, as ``--resume`` says.

        Raises:
          UserError: there is nothing to resume, it does not fit, or the workspace is taken.
        """
        resume = self._config.resume
        existing = self._checkpoints.steps() if self._checkpoints else []
        if not resume or (resume == "auto" and not existing):
            if existing:
                raise UserError(
                    f"{self.folder} holds checkpoints of an earlier run: continue it with "
                    "--resume auto, or choose another --workspace"
                )
            return state, Progress()
        if resume == "auto":
            assert self._checkpoints is not None  # opened by the constructor for auto
            state, meta, broken = self._checkpoints.restore_newest(state)
            for line in broken:
                self._console.warn(f"{line}; an earlier one is used")
        else:
            checkpoint = find_checkpoint(Path(resume).expanduser())
            if checkpoint is None:
                raise UserError(f"--resume {resume}: there is no checkpoint; check the path")
            with Checkpoints(checkpoint.parent, keep=-1) as source:
                state, meta = source.restore(int(checkpoint.name), state)
        self._check_plan(meta)
        step = int(state.step)
        self._console.note(
            f"continuing after step {step} (epoch {step // self._plan.steps_per_epoch})"
        )
        return state, Progress.from_json(meta["progress"])

    def _check_plan(self, meta: Meta) -> None:
        for name in ("global_batch", "steps_per_epoch"):
            saved, here = meta["plan"][name], getattr(self._plan, name)
            if saved != here:
                raise UserError(
                    f"the checkpoint's run had {name} {saved}, this one has {here}: its position "
                    "in the data would be lost; keep the dataset, --prof and the batch sizes (fewer"
                    f" devices: --optimizer-batch-size {meta['plan']['global_batch']})"
                )
        if meta["fingerprint"] not in (None, self._loader.fingerprint):
            self._console.warn(
                "the images, the seed or the crop options are not those of the checkpoint's run: "
                "training continues, but not as it would have"
            )

    def due(self, step: int) -> bool:
        """Whether to save after step `step`, besides the ends of epochs."""
        options = self._config.checkpoint
        if self._checkpoints is None or step % self._plan.steps_per_epoch == 0:
            return False
        if options.every_steps and step % options.every_steps == 0:
            return True
        if not options.every_minutes:
            return False
        late = time.monotonic() - self._saved_at >= 60 * options.every_minutes
        return bool(multihost_utils.broadcast_one_to_all(np.bool_(late)))

    def save(self, state: TrainState, progress: Progress, *, top1: float | None = None) -> None:
        """Start saving; see `Checkpoints.save`."""
        if self._checkpoints is None or self._config.no_checkpoints:
            return
        step = int(state.step)
        meta: Meta = {
            "step": step,
            "epoch": step // self._plan.steps_per_epoch,
            "progress": progress.to_json(),
            "config": to_dict(self._config),
            "plan": to_dict(self._plan),
            "fingerprint": self._loader.fingerprint,
            "class_names": list(self._loader.class_names),
        }
        self._checkpoints.save(state, meta, top1=top1)
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Wait for the last save; nothing can be saved after it.

        Raises:
          UserError: it failed.
        """
        checkpoints, self._checkpoints = self._checkpoints, None
        if checkpoints is not None:
            checkpoints.close()

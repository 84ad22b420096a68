"""Saving a run with orbax: asynchronous, atomic, best and last kept (reading.py reads it)."""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from seresnext_jax.checkpoint.reading import (
    CHECKSUMS,
    SCORE,
    Meta,
    best_of,
    checksums,
    first_line,
    read_meta,
    read_newest,
    split_state,
    step_folders,
)
from seresnext_jax.errors import UserError
from seresnext_jax.training.state import TrainState

_ITEMS = ("weights", "training", "meta")
_BAD_STEPS = "bad_steps"
"""Name in the meta: steps in a row, up to this one, that were not finite."""
_BROKEN, _LATER = ".broken", ".later"
"""Set aside: what can't be read, and what lies behind the checkpoint that a run went back to."""
_REPLACED = ".replaced"
"""A checkpoint whose step is being saved again; it counts until the new one is whole."""


@dataclass
class _Retention:
    """Orbax's preservation policy: which checkpoints stay when one more is whole."""

    last: int
    metas: dict[int, Meta] = field(default_factory=dict)
    """Of each step whose meta can be read."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Of steps in any order: the last N, the last N without bad steps, and the best."""
        steps = sorted(info.step for info in checkpoints)
        metas = {step: self.metas.get(step, {}) for step in steps}
        good = [step for step in steps if not metas[step].get(_BAD_STEPS)]
        kept = {*steps[-self.last :], *good[-self.last :], best_of(metas)}
        return [info.step in kept for info in checkpoints]


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving waits for the last save."""

    def __init__(self, folder: Path, *, keep: int = 0) -> None:
        """Open or create `folder`, to write in it.

        Args:
          keep: 0 keeps the last and the best checkpoint, N also the last N, -1 all of them. If
            the last steps were not finite, the last N from before them are kept too.

        Raises:
          UserError: the folder can't be made or written.
        """
        import orbax.checkpoint as ocp  # here, as it is a fifth of a program's start

        self.folder = folder.absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            settle_replaced(self.folder)
            metas = {int(p.name): m for p in step_folders(self.folder) if (m := _meta_or_none(p))}
            self._retention = _Retention(max(1, keep), metas)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._retention if keep >= 0 else None,
                    cleanup_tmp_directories=True,
                ),
                item_names=_ITEMS,
            )
        except OSError as error:
            raise UserError(
                f"the folder {self.folder} can't be used for checkpoints ({error.strerror}): "
                "mend its permissions or choose another --workspace"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the last save and free the folder.

        Raises:
          UserError: the save failed.
        """
        self.wait()
        self._manager.close()

    def save(self, state: TrainState, meta: Meta, *, top1: float | None = None) -> None:
        """Start writing `state`; returns once its arrays may be donated.

        Args:
          meta: JSON-serialisable; ``top1``, ``bad_steps`` and ``crc32`` are added to it.
          top1: validation accuracy, if this state was evaluated; decides what is best.

        Raises:
          UserError: this save or the previous one failed (disk full, say); what was whole stays.
        """
        import orbax.checkpoint as ocp

        self.wait()
        step = int(state.step)
        weights, training = split_state(state)
        # Only the first process writes the meta.
        sums = checksums((weights, training)) if jax.process_index() == 0 else {}
        meta = {**meta, SCORE: top1, _BAD_STEPS: int(state.bad_steps), CHECKSUMS: sums}
        self._retention.metas[step] = meta
        try:
            if step in self._manager.all_steps():
                self._set_aside([step], _REPLACED)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    weights=ocp.args.StandardSave(weights),
                    training=ocp.args.StandardSave(training),
                    meta=ocp.args.JsonSave(meta),
                ),
                force=True,
            )
        except (OSError, ValueError) as error:
            raise self._save_error(error) from error

    def wait(self) -> None:
        """Return when the last save is whole on disk.

        Raises:
          UserError: it failed.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._save_error(error) from error
        settle_replaced(self.folder)

    def _save_error(self, error: Exception) -> UserError:
        # The other processes may have no error: nothing here waits for them.
        if jax.process_index() == 0:
            _settle_replaced(self.folder)
        if jax.process_count() == 1:
            self._manager.reload()
        steps = step_folders(self.folder)
        kept = f"checkpoint {steps[-1].name} is whole" if steps else "there is no earlier one"
        return UserError(
            f"saving to {self.folder} failed ({first_line(error)}): {kept}; "
            "free space there and continue with --resume auto"
        )

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def restore_newest(self, like: TrainState) -> tuple[TrainState, Meta, list[str]]:
        """`read_newest`, with each broken checkpoint renamed to ``<step>.broken``."""
        state, meta, notes = read_newest(self.folder, like)
        self._set_aside_after(int(state.step), _BROKEN)
        return state, meta, notes

    def go_back_to(self, step: int) -> list[int]:
        """Rename each checkpoint behind `step` to ``<step>.later``; returns their steps."""
        return self._set_aside_after(step, _LATER)

    def _set_aside_after(self, step: int, suffix: str) -> list[int]:
        later = [other for other in self.steps() if other > step]
        for other in later:
            self._retention.metas.pop(other, None)
        self._set_aside(later, suffix)
        return later

    def _set_aside(self, steps: list[int], suffix: str) -> None:
        def rename() -> None:
            for step in steps:
                target = self.folder / f"{step}{suffix}"
                shutil.rmtree(target, ignore_errors=True)
                (self.folder / str(step)).rename(target)

        if steps:
            _on_one_process(rename)
            self._manager.reload()


def settle_replaced(folder: Path) -> None:
    """Drop the checkpoints that were saved again; bring back those whose new save failed.

    Raises:
      UserError: the folder can't be written.
    """
    try:
        _on_one_process(lambda: _settle_replaced(folder))
    except OSError as error:
        raise UserError(
            f"{folder} can't be written ({error.strerror}): make it writable, or choose another "
            "--workspace"
        ) from error


def _settle_replaced(folder: Path) -> None:
    for old in folder.glob(f"*{_REPLACED}"):
        new = old.with_suffix("")
        if new.exists():
            shutil.rmtree(old)
        else:
            old.rename(new)


def _quiet_unraisablehook(unraisable: "sys.UnraisableHookArgs") -> None:
    """Pass over what tensorstore's threads say about writes that were given up with their save."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


sys.unraisablehook = _quiet_unraisablehook


def _meta_or_none(checkpoint: Path) -> Meta | None:
    """A checkpoint's meta; None of a damaged one, which retention takes for one without result."""
    try:
        return read_meta(checkpoint)
    except UserError:
        return None


def _on_one_process(action: Callable[[], None]) -> None:
    """Change the folder on the first process while the others wait."""
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("seresnext_jax.checkpoint")

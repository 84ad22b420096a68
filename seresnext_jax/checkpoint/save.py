"""Saves checkpoints with orbax: asynchronously, atomically, and safe against a power loss."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax

from seresnext_jax.checkpoint.arrays import checksums, load_orbax, split_state
from seresnext_jax.checkpoint.durable import make_folder, sync_folder, sync_tree
from seresnext_jax.checkpoint.meta import Meta
from seresnext_jax.checkpoint.store import (
    best_step,
    first_line,
    read_arrays,
    read_meta,
    step_folders,
)
from seresnext_jax.errors import UserError
from seresnext_jax.processes.agree import on_one_process
from seresnext_jax.processes.fail import is_of_communication
from seresnext_jax.training.state import TrainState

_REPLACED = ".replaced"
"""Suffix of a checkpoint while its step is saved again; it is kept until that is complete."""


class Checkpoints:
    """Saves the checkpoints of one run. As a context manager, it waits for the last save.

    A checkpoint gets its name only when its files and folders are on disk, and an older one is
    deleted only when that name is on disk. So after a power loss at least one of them is left.
    """

    def __init__(self, folder: Path, *, keep: int = 0) -> None:
        """Open or create `folder` for writing.

        Args:
          keep: N keeps the best checkpoint and the last N, 0 the best and the last, -1 all of
            them. If the last steps were not finite, the last N from before them are kept, too.

        Raises:
          UserError: the folder can't be created or written.
        """
        ocp = load_orbax()
        self.folder = folder.absolute()
        self._keep = keep
        self._metas: dict[int, Meta] = {}
        """By step; a damaged checkpoint has none and counts as one without a result."""
        self._inode: int | None = None
        self._saving: int | None = None
        """The step of a save that may still be in progress."""
        try:
            make_folder(self.folder)
            self._inode = self._find_inode()
            settle_replaced(self.folder)
            for step in step_folders(self.folder):
                with suppress(UserError):
                    self._metas[int(step.name)] = read_meta(step)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=None,
                    cleanup_tmp_directories=True,
                    async_options=ocp.options.AsyncOptions(
                        post_finalization_callback=self._sync_before_rename
                    ),
                ),
                item_names=("weights", "training", "meta"),
            )
        except OSError as error:
            raise UserError(
                f"the folder {self.folder} can't be used for checkpoints ({error.strerror}): "
                "fix its permissions or choose another --workspace"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the last save, and close orbax's manager.

        Raises:
          UserError: the save failed.
        """
        self.wait()
        self._manager.close()

    def save(self, state: TrainState, meta: Meta) -> None:
        """Start writing `state`; returns once its arrays may be donated.

        Raises:
          UserError: this save or the previous one failed (such as on a full disk); complete
            checkpoints stay.
        """
        save_args = load_orbax().args
        self.wait()
        if self._find_inode() != self._inode:  # orbax would create a new folder
            raise self._gone()
        step = int(state.step)
        weights, training = split_state(state)
        # Only the first process writes the meta.
        crc32 = checksums(weights | training) if jax.process_index() == 0 else {}
        meta = replace(meta, bad_steps=int(state.bad_steps), crc32=crc32)
        self._metas[step] = meta
        self._saving = step
        with self._explaining_errors():
            if step in self.steps():
                self._set_aside([step], _REPLACED)
            self._manager.save(
                step,
                args=save_args.Composite(
                    weights=save_args.StandardSave(weights),
                    training=save_args.StandardSave(training),
                    meta=save_args.JsonSave(meta.to_json()),
                ),
                force=True,
            )

    def wait(self) -> None:
        """Wait until the last save is completely on disk.

        Raises:
          UserError: it failed.
        """
        with self._explaining_errors():
            self._manager.wait_until_finished()
            if self._saving is not None:
                on_one_process(self._finish_save)
                self._manager.reload()
        self._saving = None

    def _sync_before_rename(self) -> None:
        """Force the files of a save to disk; orbax then adds a marker and renames the folder."""
        for unfinished in self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            sync_tree(unfinished)

    def _finish_save(self) -> None:
        """After a save: force its name to disk, then delete the checkpoints not to keep."""
        saved = self.folder / str(self._saving)
        if saved.exists():
            sync_tree(saved)  # only orbax's marker is not on disk yet
        sync_folder(self.folder)
        for old in self.folder.glob(f"*{_REPLACED}"):
            _replace(old, old.with_suffix("").exists())
        if self._keep < 0:
            return
        kept = self._steps_to_keep([int(path.name) for path in step_folders(self.folder)])
        for path in self.folder.iterdir():
            if path.name.isdecimal() and int(path.name) not in kept:
                shutil.rmtree(path)

    def _steps_to_keep(self, steps: list[int]) -> set[int | None]:
        """Of ascending steps: the last N, the last N without bad steps, and the best (or None)."""
        metas = {step: self._metas[step] for step in steps if step in self._metas}
        good = [step for step in steps if step not in metas or not metas[step].bad_steps]
        last = max(1, self._keep)
        return {*steps[-last:], *good[-last:], best_step(metas)}

    @contextmanager
    def _explaining_errors(self) -> Iterator[None]:
        """Turn the errors of a save into a `UserError`, but not the loss of another process."""
        try:
            yield
        except (OSError, ValueError) as error:
            # Errors of files and of communication share status codes; those of files name the file.
            if is_of_communication(error) and str(self.folder) not in str(error):
                raise
            raise self._save_error(error) from error

    def _save_error(self, error: Exception) -> UserError:
        # The other processes may have no error, so don't wait for them here.
        self._saving = None
        if self._find_inode() != self._inode:
            return self._gone()
        if jax.process_index() == 0:
            _settle_replaced(self.folder)
        if jax.process_count() == 1:
            self._manager.reload()
        steps = step_folders(self.folder)
        kept = f"checkpoint {steps[-1].name} is complete" if steps else "there is no earlier one"
        return UserError(
            f"saving to {self.folder} failed ({first_line(error)}): {kept}; "
            "free space there and continue with --resume auto"
        )

    def _find_inode(self) -> int | None:
        """The folder's inode, to notice a new folder of the same name; None: it is gone."""
        return self.folder.stat().st_ino if self.folder.is_dir() else None

    def _gone(self) -> UserError:
        return UserError(
            f"{self.folder} was removed or moved during the run: put it back and continue with "
            "--resume auto, or start the run again"
        )

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def set_aside_after(self, step: int, suffix: Literal[".broken", ".later"]) -> list[int]:
        """Rename each checkpoint after `step` to ``<its step><suffix>``; returns their steps."""
        later = [other for other in self.steps() if other > step]
        if later:
            self._set_aside(later, suffix)
        return later

    def _set_aside(self, steps: list[int], suffix: str) -> None:
        def rename() -> None:
            for step in steps:
                target = self.folder / f"{step}{suffix}"
                shutil.rmtree(target, ignore_errors=True)
                (self.folder / str(step)).rename(target)

        on_one_process(rename)
        self._manager.reload()


def settle_replaced(folder: Path) -> None:
    """Finish interrupted replacements: delete an old checkpoint if its new one is complete.

    Otherwise restore the old one. All processes must call this.

    Raises:
      UserError: the folder can't be written.
    """
    try:
        on_one_process(lambda: _settle_replaced(folder))
    except OSError as error:
        raise UserError(
            f"{folder} can't be written ({error.strerror}): make it writable, or choose another "
            "--workspace"
        ) from error


def _settle_replaced(folder: Path) -> None:
    for old in folder.glob(f"*{_REPLACED}"):
        new = old.with_suffix("")
        _replace(old, new.exists() and _is_whole(new))


def _replace(old: Path, done: bool) -> None:
    """Delete a replaced checkpoint if the new one is `done`; otherwise restore it."""
    if done:
        shutil.rmtree(old)
        return
    shutil.rmtree(old.with_suffix(""), ignore_errors=True)
    old.rename(old.with_suffix(""))


def _is_whole(checkpoint: Path) -> bool:
    """Whether everything in a checkpoint can be read."""
    try:
        read_arrays(checkpoint, "weights")
        read_arrays(checkpoint, "training")
    except UserError:
        return False
    return True

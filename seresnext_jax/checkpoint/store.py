"""Checkpoints on disk: finding, reading, saving (with orbax: asynchronous, atomic).

A checkpoint is one folder named by its optimizer step, with three items: ``weights`` (params,
batch_stats, and the moving average if there is one), ``training`` (the rest of `TrainState`), and
``meta`` (`Meta` as JSON). Evaluation and conversion read the weights without the rest.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from seresnext_jax.checkpoint.arrays import by_name, checksums, load_orbax, split_state
from seresnext_jax.checkpoint.meta import Meta
from seresnext_jax.errors import UserError, shown
from seresnext_jax.processes import sum_over_processes
from seresnext_jax.training.state import TrainState

Tree = Any
K = TypeVar("K")

_REPLACED = ".replaced"
"""A checkpoint whose step is being saved again; it counts until the new one is whole."""


# ---- finding -----------------------------------------------------------------------------------


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint folder that `path` means, or None if there is none.

    `path` is a checkpoint, a folder of checkpoints (its newest is meant), ``<folder>/best``, or a
    run's workspace.

    Raises:
      UserError: the best is asked for, and a checkpoint's result can't be read.
    """
    wants_best = path.name == "best" and not path.exists()
    folder = path.parent if wants_best else path
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    found = step_folders(folder)
    if wants_best:
        return _best({step: read_meta(step) for step in found})
    if (folder / "weights").is_dir() and (folder / "meta").is_dir():
        return folder
    return found[-1] if found else None


def step_folders(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, by ascending step."""
    if not folder.is_dir():
        return []
    parts = ("weights", "meta/metadata")  # a kill while an old one is deleted leaves some
    steps = [
        step
        for step in folder.iterdir()
        if step.name.isdecimal() and all((step / part).exists() for part in parts)
    ]
    return sorted(steps, key=lambda p: int(p.name))


def _best(metas: Mapping[K, Meta]) -> K | None:
    """The key of the highest top-1, the first of equal ones, as `Progress` counts."""
    scores = {key: meta.top1 for key, meta in metas.items() if meta.top1 is not None}
    return max(scores, key=scores.__getitem__) if scores else None


# ---- reading; nothing here changes a folder ----------------------------------------------------


def read_newest(folder: Path, like: TrainState) -> tuple[TrainState, Meta, list[str]]:
    """Read the newest whole checkpoint in `folder` onto the devices of `like`.

    Args:
      like: a state of the same network and optimizer; gives shapes, types and shardings.

    Returns:
      The state, its meta, and a line for each broken checkpoint that was skipped.

    Raises:
      UserError: there is no checkpoint, or none can be read into `like`.
    """
    notes: list[str] = []
    steps = [int(p.name) for p in folder.glob("*") if p.name.isdecimal()]
    for step in sorted(steps, reverse=True):
        found, note = None, f"checkpoint {folder / str(step)} can't be read by another process"
        try:
            found = read_checkpoint(folder / str(step), like)
        except UserError as error:
            note = str(error)
        # Skip a checkpoint that any process cannot read.
        if sum_over_processes(found is None) == 0:
            assert found is not None
            return *found, notes
        notes.append(note)
    if notes:
        raise UserError(
            f"no checkpoint in {folder} fits this run: {'; '.join(notes)}; "
            "check that --model and --optim are those of the run, or choose another --workspace"
        )
    raise UserError(f"there is no checkpoint in {folder}: check the path given to --resume")


def read_checkpoint(checkpoint: Path, like: TrainState) -> tuple[TrainState, Meta]:
    """Read one checkpoint folder, of any name, onto the devices of `like`.

    Raises:
      UserError: it is damaged or of another network or optimizer.
    """
    meta = read_meta(checkpoint)
    arrays = by_name(read_arrays(checkpoint, "weights") | read_arrays(checkpoint, "training"))
    weights, training = split_state(like)
    wanted = by_name(weights | training)
    for name in sorted(arrays.keys() | wanted.keys()):
        here, there = _describe(wanted.get(name)), _describe(arrays.get(name))
        if here != there:
            raise UserError(
                f"checkpoint {checkpoint} is of another network or optimizer: {name} is {there} in "
                f"it, {here} here"
            )
    leaves = [
        jax.make_array_from_callback(leaf.shape, leaf.sharding, arrays[name].__getitem__)
        for name, leaf in wanted.items()
    ]
    fields = jax.tree.unflatten(jax.tree.structure(weights | training), leaves)
    return TrainState(**{"ema": None, **fields}), meta


def _describe(array: Any) -> str:
    return "missing" if array is None else f"{array.dtype}{list(array.shape)}"


def read_meta(checkpoint: Path) -> Meta:
    """The JSON part of one checkpoint folder.

    Raises:
      UserError: it is missing or damaged, or not what `Checkpoints.save` writes.
    """
    try:
        saved = json.loads((checkpoint / "meta" / "metadata").read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise _unreadable(checkpoint, error) from error
    try:
        return Meta.from_json(saved)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"checkpoint {checkpoint} has a meta of another kind ({shown(error)}): "
            "choose another one"
        ) from error


def read_arrays(checkpoint: Path, item: Literal["weights", "training"]) -> Tree:
    """One item of a checkpoint folder as nested containers of numpy arrays, without any device.

    Returns:
      For ``weights``, float32 ``{"params": ..., "batch_stats": ...}``, and ``"ema"`` (the same
      two) if it was kept; for ``training``, the other fields of `TrainState`.

    Raises:
      UserError: the files are damaged.
    """
    ocp = load_orbax()
    wanted = read_meta(checkpoint).crc32
    folder = (checkpoint / item).absolute()
    try:
        # The handler on its own: a `Checkpointer` would wait for the other processes.
        reader = ocp.PyTreeCheckpointHandler()
        tree = reader.metadata(folder).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arrays = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # tensorstore raises no narrower one for a damaged file
        raise _unreadable(checkpoint, error) from error
    for name, found in checksums(arrays).items():
        if found != wanted.get(name, found):
            raise _unreadable(checkpoint, ValueError(f"{name} is not what was saved"))
    return arrays


def _unreadable(checkpoint: Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint {checkpoint} can't be read ({_first_line(error)}); an earlier one may be whole"
    )


def _first_line(error: BaseException) -> str:
    """An error's type and the beginning of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


# ---- saving ------------------------------------------------------------------------------------


@dataclass
class _Retention:
    """Orbax's preservation policy: which checkpoints stay when one more is whole."""

    last: int
    metas: dict[int, Meta] = field(default_factory=dict)
    """By step; a damaged checkpoint has none and counts as one without a result."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Of steps in any order: the last N, the last N without bad steps, and the best."""
        steps = sorted(info.step for info in checkpoints)
        metas = {step: self.metas[step] for step in steps if step in self.metas}
        good = [step for step in steps if step not in metas or not metas[step].bad_steps]
        kept = {*steps[-self.last :], *good[-self.last :], _best(metas)}
        return [info.step in kept for info in checkpoints]


class Checkpoints:
    """Saves the checkpoints of one run. A context manager: leaving waits for the last save."""

    def __init__(self, folder: Path, *, keep: int = 0) -> None:
        """Open or create `folder`, to write in it.

        Args:
          keep: 0 keeps the last and the best checkpoint, N also the last N, -1 all of them. If
            the last steps were not finite, the last N from before them are kept too.

        Raises:
          UserError: the folder can't be made or written.
        """
        ocp = load_orbax()
        self.folder = folder.absolute()
        self._retention = _Retention(max(1, keep))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            settle_replaced(self.folder)
            for step in step_folders(self.folder):
                with suppress(UserError):
                    self._retention.metas[int(step.name)] = read_meta(step)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._retention if keep >= 0 else None,
                    cleanup_tmp_directories=True,
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
        """Wait for the last save and free the folder.

        Raises:
          UserError: the save failed.
        """
        self.wait()
        self._manager.close()

    def save(self, state: TrainState, meta: Meta) -> None:
        """Start writing `state`; returns once its arrays may be donated.

        Raises:
          UserError: this save or the previous one failed (such as on a full disk); what was whole
            stays.
        """
        save_args = load_orbax().args
        self.wait()
        step = int(state.step)
        weights, training = split_state(state)
        # Only the first process writes the meta.
        crc32 = checksums(weights | training) if jax.process_index() == 0 else {}
        meta = replace(meta, bad_steps=int(state.bad_steps), crc32=crc32)
        self._retention.metas[step] = meta
        try:
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
            f"saving to {self.folder} failed ({_first_line(error)}): {kept}; "
            "free space there and continue with --resume auto"
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


def _on_one_process(action: Callable[[], None]) -> None:
    """Change the folder on the first process while the others wait."""
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("seresnext_jax.checkpoint")

"""Saving and restoring a run with orbax: asynchronous, atomic, best and last kept.

A checkpoint is one folder named by its optimizer step, with three items: ``weights`` (params,
batch_stats, and the moving average where there is one), ``training`` (what else `TrainState`
holds), and ``meta`` (JSON: position, best result, config and plan, checksums of the arrays).
Weights stand apart so that evaluation and conversion need neither the optimizer nor its options.
"""

import json
import logging
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from seresnext_jax.errors import UserError
from seresnext_jax.mesh import sum_over_processes
from seresnext_jax.state import TrainState

Tree = Any
Meta = dict[str, Any]
_WEIGHTS = ("params", "batch_stats", "ema")
_ITEMS = ("weights", "training", "meta")
_SCORE, _BAD_STEPS, _CHECKSUMS = "top1", "bad_steps", "crc32"
"""What `Checkpoints.save` adds to the meta."""
_BROKEN, _LATER = ".broken", ".later"
"""Set aside: what can't be read, and what lies behind the checkpoint that a run went back to."""
_REPLACED = ".replaced"
"""A checkpoint whose step is being saved again; it counts until the new one is whole."""

# Orbax narrates each of its steps, and prints an error beside raising it.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


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
        kept = {*steps[-self.last :], *good[-self.last :], _best_of(metas)}
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
        self.folder = folder.absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _on_one_process(self._settle_replaced)
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
        self.wait()
        step = int(state.step)
        weights, training = split_state(state)
        # Only the first process writes the meta.
        sums = _checksums((weights, training)) if jax.process_index() == 0 else {}
        meta = {**meta, _SCORE: top1, _BAD_STEPS: int(state.bad_steps), _CHECKSUMS: sums}
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
        _on_one_process(self._settle_replaced)

    def _save_error(self, error: Exception) -> UserError:
        # The other processes may have no error: nothing here waits for them.
        if jax.process_index() == 0:
            self._settle_replaced()
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

    def _settle_replaced(self) -> None:
        """Drop the checkpoints that were saved again; bring back those whose new save failed."""
        for old in self.folder.glob(f"*{_REPLACED}"):
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


def _on_one_process(action: Callable[[], None]) -> None:
    """Change the folder on the first process while the others wait."""
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("seresnext_jax.checkpoint")


def split_state(state: TrainState) -> tuple[Tree, Tree]:
    """The two array items of a checkpoint: weights, and everything else."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    weights = {name: fields.pop(name) for name in _WEIGHTS}
    if weights["ema"] is None:
        del weights["ema"]
    return weights, fields


# ---- reading: nothing below changes a folder ---------------------------------------------------


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint folder that `path` means, or None where there is none.

    `path` is a checkpoint, a folder of checkpoints (its newest is meant), ``<folder>/best``, or a
    run's workspace.
    """
    if path.name == "best" and not path.exists():
        return _best(path.parent)
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints"
    if (path / "weights").is_dir() and (path / "meta").is_dir():
        return path
    found = step_folders(path)
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


def _best(folder: Path) -> Path | None:
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    steps = {int(p.name): p for p in step_folders(folder)}
    best = _best_of({step: m for step, p in steps.items() if (m := _meta_or_none(p))})
    return None if best is None else steps[best]


def _best_of(metas: dict[int, Meta]) -> int | None:
    """The first step with the highest top-1, as `Progress` counts."""
    scores = {s: m[_SCORE] for s, m in sorted(metas.items()) if m.get(_SCORE) is not None}
    return max(scores, key=scores.__getitem__) if scores else None


def read_newest(folder: Path, like: TrainState) -> tuple[TrainState, Meta, list[str]]:
    """Read the newest whole checkpoint in `folder` onto the devices of `like`.

    Args:
      like: a state of the same network and optimizer; gives shapes, types and shardings.

    Returns:
      The state, its meta, and a line for each broken checkpoint that was stepped over.

    Raises:
      UserError: there is no checkpoint, or none can be read into `like`.
    """
    notes: list[str] = []
    steps = [int(p.name) for p in folder.glob("*") if p.name.isdecimal()]
    for step in sorted(steps, reverse=True):
        found = None
        try:
            found = read_checkpoint(folder / str(step), like)
        except UserError as error:
            notes.append(f"{error}")
        # What one process can't read, none goes on with.
        if sum_over_processes(found is None) == 0:
            assert found is not None
            return *found, notes
        if found is not None:
            notes.append(f"checkpoint {folder / str(step)} can't be read by another process")
    if notes:
        raise UserError(
            f"no checkpoint in {folder} fits this run: {'; '.join(notes)}; "
            "check that --model and --optim are those of the run, or choose another --workspace"
        )
    raise UserError(f"{folder} holds no checkpoint: check the path given to --resume")


def read_checkpoint(checkpoint: Path, like: TrainState) -> tuple[TrainState, Meta]:
    """Read one checkpoint folder, of any name, onto the devices of `like`.

    Raises:
      UserError: it is damaged or of another network or optimizer.
    """
    meta = read_meta(checkpoint)
    arrays = _by_name((read_weights(checkpoint), read_training(checkpoint)))
    wanted = _by_name(split_state(like))
    if different := sorted(arrays.keys() ^ wanted.keys()):
        raise UserError(
            f"checkpoint {checkpoint} is of another network or optimizer (only one of the two has "
            f"{different[0]})"
        )
    for name, array in arrays.items():
        if (array.shape, array.dtype) != (wanted[name].shape, wanted[name].dtype):
            raise UserError(
                f"checkpoint {checkpoint} is of another network: its {name} is "
                f"{array.dtype}{list(array.shape)}, here it is "
                f"{wanted[name].dtype}{list(wanted[name].shape)}"
            )

    def place(path: Any, leaf: jax.Array) -> jax.Array:
        array = arrays[_name_of(path)]
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda at: array[at])

    weights, training = jax.tree_util.tree_map_with_path(place, split_state(like))
    return TrainState(**{"ema": None, **weights, **training}), meta


def read_meta(checkpoint: Path) -> Meta:
    """The JSON part of one checkpoint folder.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        meta = json.loads((checkpoint / "meta" / "metadata").read_text(encoding="utf-8"))
        if not isinstance(meta, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise _unreadable(checkpoint, error) from error
    return meta


def _meta_or_none(checkpoint: Path) -> Meta | None:
    try:
        return read_meta(checkpoint)
    except UserError:
        return None


def read_weights(checkpoint: Path) -> Tree:
    """The weights of one checkpoint folder as float32 numpy arrays, with no device involved.

    Returns:
      ``{"params": ..., "batch_stats": ...}``, and ``"ema"`` (the same two) where it was kept.

    Raises:
      UserError: the files are damaged.
    """
    return _read_arrays(checkpoint, "weights")


def read_training(checkpoint: Path) -> Tree:
    """The rest of one checkpoint's `TrainState` as nested dictionaries of numpy arrays.

    Raises:
      UserError: the files are damaged.
    """
    return _read_arrays(checkpoint, "training")


def _read_arrays(checkpoint: Path, item: str) -> Tree:
    wanted = read_meta(checkpoint).get(_CHECKSUMS, {})
    folder = (checkpoint / item).absolute()
    try:
        # The handler on its own: a `Checkpointer` would wait for the other processes.
        reader = ocp.PyTreeCheckpointHandler()
        tree = reader.metadata(folder).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arrays = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # tensorstore raises no narrower one for a damaged file
        raise _unreadable(checkpoint, error) from error
    for name, found in _checksums(arrays).items():
        if found != wanted.get(name, found):
            raise _unreadable(checkpoint, ValueError(f"{name} is not what was saved"))
    return arrays


def _checksums(tree: Tree) -> dict[str, int]:
    """The CRC-32 of each array's bytes, by its name."""

    def checksum(array: Any) -> int:
        if isinstance(array, jax.Array):  # the copy of one device; all have the same
            array = np.asarray(array.addressable_data(0))
        return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    arrays = _by_name(tree)
    with ThreadPoolExecutor() as pool:
        return dict(zip(arrays, pool.map(checksum, arrays.values()), strict=True))


def _by_name(tree: Tree) -> dict[str, Any]:
    """The leaves of weights, training, or a sequence of both: ``params/conv1/kernel`` → leaf."""
    return {_name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name_of(path: Any) -> str:
    item = isinstance(path[0], jax.tree_util.SequenceKey)  # which of a sequence of trees
    return jax.tree_util.keystr(path[item:], simple=True, separator="/")


def _unreadable(checkpoint: Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint {checkpoint} can't be read ({_first_line(error)}); an earlier one may be whole"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

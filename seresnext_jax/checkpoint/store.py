"""Finds and reads checkpoints on disk; save.py writes them.

A checkpoint is one folder named by its optimizer step, with three items: ``weights`` (params,
batch_stats, and the moving average if there is one), ``training`` (the rest of `TrainState`), and
``meta`` (`Meta` as JSON). Evaluation and conversion read the weights without the rest.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from seresnext_jax.checkpoint.arrays import by_name, checksums, load_orbax, split_state
from seresnext_jax.checkpoint.meta import Meta
from seresnext_jax.errors import UserError, shown
from seresnext_jax.processes.agree import sum_over_processes
from seresnext_jax.training.state import TrainState

Tree = Any
K = TypeVar("K")


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
        return best_step({step: read_meta(step) for step in found})
    if (folder / "weights").is_dir() and (folder / "meta").is_dir():
        return folder
    return found[-1] if found else None


def explain_choice(path: Path) -> str | None:
    """A line that says which of a folder's checkpoints is used; None if there is no choice."""
    found = find_checkpoint(path)
    if found is None or found == path or path.name == "best":
        return None
    if len(step_folders(found.parent)) < 2:
        return None
    used = f"{path}: using checkpoint {found.name}, the newest"
    return f"{used}; for the best, give {path / 'best'}" if _has_best(path) else used


def _has_best(path: Path) -> bool:
    try:
        return find_checkpoint(path / "best") is not None
    except UserError:  # a checkpoint is damaged, so its result is not known
        return False


def step_folders(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, by ascending step."""
    if not folder.is_dir():
        return []
    parts = ("weights", "meta/metadata")  # a killed deletion leaves only some of these
    steps = [
        step
        for step in folder.iterdir()
        if step.name.isdecimal() and all((step / part).exists() for part in parts)
    ]
    return sorted(steps, key=lambda p: int(p.name))


def best_step(metas: Mapping[K, Meta]) -> K | None:
    """The key with the highest top-1, the first of equal ones; None if no state was evaluated."""
    scores = {key: meta.top1 for key, meta in metas.items() if meta.top1 is not None}
    return max(scores, key=scores.__getitem__) if scores else None


# ---- reading; nothing here changes a folder ----------------------------------------------------


def read_newest(folder: Path, like: TrainState) -> tuple[TrainState, Meta, list[str]]:
    """Read the newest complete checkpoint in `folder` onto the devices of `like`.

    All processes must call this.

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
      UserError: it is damaged, or is for another network or optimizer.
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
    """The `Meta` of one checkpoint folder.

    Raises:
      UserError: it is missing or damaged, or not what `Checkpoints.save` writes.
    """
    try:
        saved = json.loads((checkpoint / "meta" / "metadata").read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ValueError("not a JSON object")
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
        # Use the handler directly: a `Checkpointer` would wait for the other processes.
        reader = ocp.PyTreeCheckpointHandler()
        tree = reader.metadata(folder).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arrays = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # for damaged files tensorstore raises nothing narrower
        raise _unreadable(checkpoint, error) from error
    for name, found in checksums(arrays).items():
        if found != wanted.get(name, found):
            raise _unreadable(checkpoint, ValueError(f"{name} is not what was saved"))
    return arrays


def _unreadable(checkpoint: Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint {checkpoint} can't be read ({first_line(error)}); an earlier one may be intact"
    )


def first_line(error: BaseException) -> str:
    """An error's type and the beginning of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"

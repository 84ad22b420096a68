"""Finding and reading checkpoints, whole or not; nothing here changes a folder.

A checkpoint is one folder named by its optimizer step, with three items: ``weights`` (params,
batch_stats, and the moving average where there is one), ``training`` (what else `TrainState`
holds), and ``meta`` (JSON: position, best result, config and plan, checksums of the arrays).
Weights stand apart so that evaluation and conversion need neither the optimizer nor its options.
"""

import json
import logging
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seresnext_jax.errors import UserError
from seresnext_jax.processes import sum_over_processes
from seresnext_jax.training.state import TrainState

Tree = Any
Meta = dict[str, Any]
SCORE, CHECKSUMS = "top1", "crc32"
"""Names in the meta: validation accuracy in percent or None, and the CRC-32 of each array."""
_WEIGHTS = ("params", "batch_stats", "ema")

# Orbax narrates each of its steps, and prints an error beside raising it.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def split_state(state: TrainState) -> tuple[Tree, Tree]:
    """The two array items of a checkpoint: weights, and everything else."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    weights = {name: fields.pop(name) for name in _WEIGHTS}
    if weights["ema"] is None:
        del weights["ema"]
    return weights, fields


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint folder that `path` means, or None where there is none.

    `path` is a checkpoint, a folder of checkpoints (its newest is meant), ``<folder>/best``, or a
    run's workspace.

    Raises:
      UserError: the best is asked for, and a checkpoint's result can't be read.
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
    best = best_of({step: read_meta(path) for step, path in steps.items()})
    return None if best is None else steps[best]


def best_of(metas: dict[int, Meta]) -> int | None:
    """The first step with the highest top-1, as `Progress` counts."""
    scores = {s: m[SCORE] for s, m in sorted(metas.items()) if m.get(SCORE) is not None}
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
        # Skip a checkpoint that any process cannot read.
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
    import orbax.checkpoint as ocp  # here, as it is a fifth of a program's start

    wanted = read_meta(checkpoint).get(CHECKSUMS, {})
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


def checksums(tree: Tree) -> dict[str, int]:
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
        f"checkpoint {checkpoint} can't be read ({first_line(error)}); an earlier one may be whole"
    )


def first_line(error: BaseException) -> str:
    """An error's type and the beginning of its message, as it may stand in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

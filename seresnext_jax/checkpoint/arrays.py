"""The arrays of a state in a checkpoint: two items, and a name and checksum for each array."""

import logging
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import Any

import jax
import numpy as np

from seresnext_jax.training.state import TrainState

Tree = Any
_WEIGHTS = ("params", "batch_stats", "ema")


@cache
def load_orbax() -> ModuleType:
    """Import orbax when it is first needed (it takes a fifth of the start time), and silence it.

    It logs each of its steps and every error that it raises. When a save fails, threads of
    tensorstore also report the writes that were abandoned.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    report = sys.unraisablehook

    def report_others(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            report(unraisable)

    sys.unraisablehook = report_others
    import orbax.checkpoint

    return orbax.checkpoint


def split_state(state: TrainState) -> tuple[Tree, Tree]:
    """The two array items of a checkpoint: params, batch_stats and any ema; the other fields."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    if state.ema is None:
        del fields["ema"]
    return {name: fields.pop(name) for name in _WEIGHTS if name in fields}, fields


def checksums(tree: Tree) -> dict[str, int]:
    """The CRC-32 of each array's bytes, by its name; the arrays must be replicated."""

    def checksum(array: Any) -> int:
        if isinstance(array, jax.Array):  # one device's copy; all are equal
            array = np.asarray(array.addressable_data(0))
        return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    arrays = by_name(tree)
    with ThreadPoolExecutor() as pool:
        return dict(zip(arrays, pool.map(checksum, arrays.values()), strict=True))


def by_name(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree in their order: ``params/conv1/kernel`` → leaf."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

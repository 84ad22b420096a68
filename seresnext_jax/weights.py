"""The weights folder: a network's variables as safetensors, and what is known of them as JSON."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from seresnext_jax.errors import UserError

Array = np.ndarray[Any, Any]
Tree = dict[str, Any]
"""Nested dictionaries of arrays: ``{"params": ..., "batch_stats": ...}``."""

TENSORS = "model.safetensors"
METADATA = "metadata.json"


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("jax", "flax", "numpy", "safetensors")}


@dataclass(frozen=True)
class WeightsInfo:
    """What is known of a set of weights."""

    architecture: str
    """A name in seresnext_jax/model.py."""
    num_classes: int
    class_names: tuple[str, ...] | None = None
    image_size: int = 224
    """Side of the square the network was made for, in pixels."""
    eval_margin: int = 32
    """Evaluation resizes the shorter side to image_size + this before the centre crop."""
    source: str = ""
    """Name of the file or folder they were converted from."""
    sha256: str | None = None
    """Of the source, where that is one file."""
    layout: str | None = None
    """Naming of the source: ``ngc`` (layer1.) or ``current`` (layers.0.); None: no torch file."""
    ema: bool = False
    """Whether these are the moving average."""
    epoch: int | None = None
    """Epochs of training completed."""
    top1: float | None = None
    """Validation accuracy in percent."""
    versions: dict[str, str] = field(default_factory=_versions)
    """Of the packages that made them."""


def flatten(variables: Tree) -> dict[str, Array]:
    """``{"params": {"fc": {"bias": x}}}`` → ``{"params/fc/bias": x}``."""
    flat: dict[str, Array] = {}
    for name, value in variables.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{rest}": x for rest, x in flatten(dict(value)).items()}
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Array]) -> Tree:
    """The inverse of `flatten`."""
    tree: Tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


def save_weights(folder: Path, variables: Tree, metadata: WeightsInfo) -> None:
    """Write a weights folder, whole or not at all; an earlier one of that name is replaced.

    Args:
      variables: params and batch_stats; stored as float32.

    Raises:
      UserError: `folder` holds something else, or can't be written.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give the name of a folder for the weights")
    if folder.is_dir() and not {p.name for p in folder.iterdir()} <= {TENSORS, METADATA}:
        raise UserError(f"{folder} holds other files: give a new folder for the weights")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        flat = {path: np.ascontiguousarray(x, np.float32) for path, x in flatten(variables).items()}
        save_file(flat, part / TENSORS)
        (part / METADATA).write_text(json.dumps(asdict(metadata), indent=2) + "\n")
        if folder.is_dir():
            shutil.rmtree(folder)
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder} can't be written ({error}): free space or rights there"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_weights_folder(folder: Path) -> bool:
    """Whether `folder` is what `save_weights` writes."""
    return (folder / TENSORS).is_file()


def load_weights(folder: Path) -> tuple[Tree, WeightsInfo]:
    """Read a weights folder: float32 numpy variables, and what is known of them.

    Raises:
      UserError: a file is missing or damaged.
    """
    try:
        flat = load_file(folder / TENSORS)
        values = json.loads((folder / METADATA).read_text())
        names = values["class_names"]
        info = WeightsInfo(**{**values, "class_names": None if names is None else tuple(names)})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is no whole weights folder ({error}): convert the weights again"
        ) from error
    return unflatten(flat), info

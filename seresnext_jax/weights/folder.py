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

from seresnext_jax.errors import UserError, shown

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
    """A name in seresnext_jax/model/network.py."""
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
    kind: str | None = None
    """Of the source: ``torch state dict`` or ``torch checkpoint``; None, and so are the next five:
    no torch file."""
    layout: str | None = None
    """Naming of the source: ``ngc`` (layer1.) or ``current`` (layers.0.)."""
    prefix: str | None = None
    """What stood before every name of the source: ``module.``, or nothing."""
    se_weights: str | None = None
    """How the source kept the SE weights: ``linear``, ``convolution`` or ``none``."""
    dtype: str | None = None
    """Floating-point types in the source, ``float32`` mostly."""
    batches_tracked: int | None = None
    """The source's BatchNorm counters (the largest, if they differ); None: it had none."""
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


def weights_folder(path: Path) -> Path | None:
    """The folder of `save_weights` that `path` means, by itself or by its tensors' file."""
    if path.name == TENSORS and (path.parent / METADATA).is_file():
        path = path.parent
    return path if (path / TENSORS).is_file() else None


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
        check_info(info)
        variables = unflatten(flat)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise UserError(
            f"{folder} is no whole weights folder ({shown(error)}): convert the weights again"
        ) from error
    return variables, info


def check_info(info: WeightsInfo) -> None:
    """Check what the programs take from metadata.

    Raises:
      ValueError: naming the field that can't be right.
    """
    if not isinstance(info.architecture, str):
        raise ValueError(f"architecture is {info.architecture!r}")
    for name, low in (("num_classes", 1), ("image_size", 1), ("eval_margin", 0)):
        value = getattr(info, name)
        if type(value) is not int or not low <= value <= 10**7:
            raise ValueError(f"{name} is {value!r}")
    names = info.class_names
    if names is None:
        return
    if not all(isinstance(name, str) for name in names):
        raise ValueError("class_names are not all text")
    if len(names) != info.num_classes:
        raise ValueError(f"{len(names)} class_names for num_classes {info.num_classes}")

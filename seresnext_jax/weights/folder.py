"""The weights folder: variables as safetensors, and the facts recorded with them as JSON."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from seresnext_jax.errors import UserError, shown
from seresnext_jax.weights.identify import check_variables
from seresnext_jax.weights.info import Weights, WeightsInfo, check_info, to_json

TENSORS = "model.safetensors"
METADATA = "metadata.json"


def find_weights_folder(path: Path) -> Path | None:
    """The weights folder that `path` names, directly or by its file of tensors; else None."""
    if path.name == TENSORS and (path.parent / METADATA).is_file():
        path = path.parent
    if not (path / TENSORS).is_file():
        return None
    return None if _is_of_the_hub(path) else path


def _is_of_the_hub(folder: Path) -> bool:
    """Whether the tensors are PyTorch's: on the Hugging Face hub the file has the same name."""
    if (folder / METADATA).is_file():
        return False
    with (folder / TENSORS).open("rb") as file:
        head = file.read(2**16)
    return b'"params/' not in head and b'"batch_stats/' not in head


def read_weights_folder(folder: Path) -> Weights:
    """Read a weights folder.

    Raises:
      UserError: a file is missing or damaged, or the tensors do not fit the architecture in the
        metadata.
    """
    try:
        variables = unflatten_dict(load_file(folder / TENSORS), sep="/")
        values = json.loads((folder / METADATA).read_text())
        names = values["class_names"]
        changed = {"class_names": None if names is None else tuple(names)}
        info = WeightsInfo(**{**values, **changed, "notes": tuple(values.get("notes", ()))})
        check_info(info)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, MemoryError) as error:
        raise UserError(
            f"{folder} is not a complete weights folder ({shown(error)}): convert the weights again"
        ) from error
    check_variables(variables, info.architecture, info.num_classes, source=str(folder))
    return Weights(variables, info)


def write_weights_folder(folder: Path, weights: Weights) -> None:
    """Write a weights folder completely or not at all; replaces an earlier one of that name.

    If the process is killed while it replaces one, the old and the new folder may remain as hidden
    folders beside `folder`.

    Raises:
      UserError: `folder` contains other files, or can't be written.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give the name of a folder for the weights")
    if folder.is_dir() and not {p.name for p in folder.iterdir()} <= {TENSORS, METADATA}:
        raise UserError(f"{folder} contains other files: give a new folder for the weights")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        flat = flatten_dict(weights.variables, sep="/")
        save_file(
            {path: np.ascontiguousarray(x, np.float32) for path, x in flat.items()}, part / TENSORS
        )
        (part / METADATA).write_text(to_json(asdict(weights.info)))
        _replace_folder(folder, part)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder} can't be written ({error}): free space or change the permissions there"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace_folder(folder: Path, new: Path) -> None:
    """Rename `new` to `folder`; the old folder is deleted last."""
    if not folder.is_dir():
        new.rename(folder)
        return
    old = new.with_suffix(".old")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)

"""Reads weights from a weights folder, a checkpoint or a PyTorch file. PyTorch is not needed."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from seresnext_jax.checkpoint.store import find_checkpoint, read_arrays, read_meta
from seresnext_jax.errors import UserError, shown
from seresnext_jax.weights.describe import describe, describe_content, describe_table
from seresnext_jax.weights.file_kind import files_in, hugging_face_file
from seresnext_jax.weights.folder import find_weights_folder, read_weights_folder
from seresnext_jax.weights.info import Tree, Weights, WeightsInfo, check_info
from seresnext_jax.weights.state_dict import check_finite, from_state_dict
from seresnext_jax.weights.torch_file import TorchFile, open_torch_file

Facts = dict[str, Any]


def read_weights(path: Path | str, *, ema: bool = False, table: str = "") -> Weights:
    """Read weights from a weights folder, a checkpoint or a PyTorch file.

    Args:
      path: anything that `open_source` takes.
      ema: read the moving average instead of the weights. If the source contains only a moving
        average, that is read in any case, and the info says so.
      table: the name of the state dict in a PyTorch file that has several.

    Raises:
      UserError: the source is missing or damaged, has no known architecture or no moving average,
        or contains NaN or infinity.
    """
    if ema and table:
        raise UserError("--table names one set of weights: leave --ema out")
    weights = open_source(path, table=table).read(ema=ema)
    if ema and not weights.info.ema:
        raise UserError(f"{path} contains no moving average: leave --ema out")
    return weights


def inspect_weights(path: Path | str, *, table: str = "") -> Facts:
    """What a source contains, as plain values for JSON.

    A PyTorch file of an unknown architecture or with NaN is described, too; ``problem`` says why
    its weights can't be used.

    Raises:
      UserError: the source can't be read, or is a weights folder or checkpoint with such weights.
    """
    source = open_source(path, table=table)
    parameters = problem = None
    try:
        weights = source.read()
        info = asdict(weights.info)
        parameters = sum(x.size for x in jax.tree.leaves(weights.variables["params"]))
    except UserError as error:
        if not isinstance(source, TorchFileSource):
            raise
        problem = str(error)
        info = asdict(WeightsInfo("", 0, source=Path(path).name))
        info |= {"architecture": None, "num_classes": None}
    names = info["class_names"]
    return {
        "kind": None,
        **info,
        "class_names": None if names is None else [shown(name) for name in names],
        "notes": list(info["notes"]),
        "parameters": parameters,
        **source.facts(),
        "problem": problem,
    }


def open_source(path: Path | str, *, table: str = "") -> "Source":
    """The source at a path; its weights are not read yet.

    Args:
      path: a weights folder or its file of tensors, a PyTorch file, a folder of the Hugging Face
        hub with one, or a checkpoint in any form that `find_checkpoint` takes.
      table: the name of the state dict in a PyTorch file that has several.

    Raises:
      UserError: there is none, its weights are in several files, or `table` is given and it is not
        a PyTorch file.
    """
    path = Path(path).expanduser()  # a shell leaves the ~ of --weights=~/a
    if folder := find_weights_folder(path):
        source: Source = WeightsFolderSource(folder)
    elif checkpoint := find_checkpoint(path):
        source = CheckpointSource(checkpoint)
    elif path.is_dir() and (file := hugging_face_file(path)):
        return TorchFileSource(file, table)
    elif path.is_file():
        return TorchFileSource(path, table)
    elif path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} contains neither weights nor a checkpoint: {files_in(path)}")
    else:
        raise UserError(f"{path} contains neither weights nor a checkpoint: check the path")
    if table:
        raise UserError(f"{path} contains one set of weights: leave --table out")
    return source


def has_table(path: Path, table: str) -> bool:
    """Whether a path is a PyTorch file with a state dict of this name; False if the name is ""."""
    source = open_source(path) if table else None
    return isinstance(source, TorchFileSource) and any(
        found.name == table for found in source.file.tables
    )


@dataclass(frozen=True)
class Source(ABC):
    """A source of weights: a folder, a checkpoint or a PyTorch file."""

    path: Path

    @abstractmethod
    def read(self, *, ema: bool = False) -> Weights:
        """The weights; with `ema` their moving average, if there is one.

        Raises:
          UserError: they are damaged, have no known architecture, or contain NaN or infinity.
        """

    @abstractmethod
    def facts(self) -> Facts:
        """What `inspect_weights` shows in addition to the weights' info."""


class WeightsFolderSource(Source):
    """A folder written by `write_weights_folder`."""

    def read(self, *, ema: bool = False) -> Weights:
        return _finite(read_weights_folder(self.path), self.path)

    def facts(self) -> Facts:
        return {"kind": "weights folder"}


class CheckpointSource(Source):
    """A checkpoint written by train.py."""

    @cached_property
    def _arrays(self) -> Tree:
        """``params``, ``batch_stats`` and, if there is a moving average, ``ema``."""
        return read_arrays(self.path, "weights")

    def read(self, *, ema: bool = False) -> Weights:
        ema = ema and "ema" in self._arrays
        variables = self._arrays["ema"] if ema else self._arrays
        meta = read_meta(self.path)
        model, data = meta.config.model, meta.config.data
        info = WeightsInfo(
            architecture=model.arch,
            num_classes=model.num_classes,
            class_names=meta.class_names or None,
            image_size=data.image_size,
            eval_margin=data.eval_margin,
            interpolation=data.interpolation,
            source=self.path.name,
            batches_tracked=meta.forward_passes("ema" if ema else "weights"),
            ema=ema,
            epoch=meta.epoch,
            top1=meta.top1,
        )
        try:
            check_info(info)
        except ValueError as error:
            raise UserError(
                f"checkpoint {self.path} has a meta of another kind ({shown(error)}): choose "
                "another one"
            ) from error
        variables = {name: variables[name] for name in ("params", "batch_stats")}
        return _finite(Weights(variables, info), self.path)

    def facts(self) -> Facts:
        return {"kind": "checkpoint", "has_ema": "ema" in self._arrays}


@dataclass(frozen=True)
class TorchFileSource(Source):
    """A file that `open_torch_file` accepts."""

    table: str = ""
    """The name of the state dict to take; empty: the only one."""

    @cached_property
    def file(self) -> TorchFile:
        """The content of the file."""
        return open_torch_file(self.path, table=self.table)

    @cached_property
    def _sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self, *, ema: bool = False) -> Weights:
        file = self.file
        table = file.choose_table(ema=ema)
        weights = from_state_dict(file.read_table(table), source=str(self.path))
        ignored = file.ignored(table)
        notes = [f"entries that are not tensors were ignored: {', '.join(ignored[:8])}"]
        info = replace(
            weights.info,
            source=self.path.name,
            sha256=self._sha256,
            kind=f"torch {file.kind}",
            dtype=", ".join(table.dtypes),
            ema=table.is_average,
            epoch=file.epoch,
            table=table.name,
            notes=(*weights.info.notes, *(notes if ignored else [])),
        )
        return replace(weights, info=info)

    def facts(self) -> Facts:
        file = self.file
        return {
            "kind": f"torch {file.kind}",
            "format": file.content.format,
            "sha256": self._sha256,
            "has_ema": any(table.is_average for table in file.tables),
            "has_optimizer": file.has_optimizer,
            "best_prec1": file.best_prec1,
            "arch": None if file.arch is None else shown(describe(file.arch)),
            "tables": [describe_table(table) for table in file.tables],
            "content": describe_content(file.content.value, file.tables),
        }


def _finite(weights: Weights, path: Path) -> Weights:
    """The same weights; raises `UserError` if they contain NaN or infinity."""
    for name, array in flatten_dict(weights.variables, sep="/").items():
        check_finite(name, np.asarray(array), source=str(path))
    return weights

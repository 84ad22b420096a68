"""Weights from any source: a weights folder, a checkpoint or a torch file.

PyTorch is imported only when a torch file is read.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from seresnext_jax.checkpoint.store import find_checkpoint, read_arrays, read_meta
from seresnext_jax.errors import UserError, shown
from seresnext_jax.weights.folder import find_weights_folder, read_weights_folder
from seresnext_jax.weights.info import Tree, Weights, WeightsInfo, check_info
from seresnext_jax.weights.state_dict import StateDict, from_state_dict

if TYPE_CHECKING:
    from seresnext_jax.weights.torch_file import TorchFile

Facts = dict[str, Any]


def read_weights(path: Path | str, *, ema: bool = False) -> Weights:
    """Read weights from a weights folder, a checkpoint or a torch file.

    Args:
      path: anything that `open_source` takes.
      ema: the moving average instead of the weights. If there is nothing else, it is taken without
        asking, and the info says so.

    Raises:
      UserError: nothing there, damaged, of no known architecture, or without a moving average.
    """
    weights = open_source(path).read(ema=ema)
    if ema and not weights.info.ema:
        raise UserError(f"{path} contains no moving average: leave --ema out")
    return weights


def inspect_weights(path: Path | str) -> Facts:
    """What a source contains, as plain values for JSON.

    Raises:
      UserError: as `read_weights`.
    """
    source = open_source(path)
    weights = source.read()
    names = weights.info.class_names
    return {
        "kind": weights.info.kind,
        **asdict(weights.info),
        "class_names": None if names is None else [shown(name) for name in names],
        "parameters": sum(x.size for x in jax.tree.leaves(weights.variables["params"])),
        **source.facts(),
    }


def open_source(path: Path | str) -> "Source":
    """The source that a path means; its weights are not read yet.

    Args:
      path: a weights folder or its file of tensors, a torch file, or a checkpoint in any form that
        `find_checkpoint` takes.

    Raises:
      UserError: there is none.
    """
    path = Path(path)
    if folder := find_weights_folder(path):
        return WeightsFolderSource(folder)
    if checkpoint := find_checkpoint(path):
        return CheckpointSource(checkpoint)
    if path.is_file():
        return TorchFileSource(path)
    raise UserError(f"{path} contains neither weights nor a checkpoint: check the path")


@dataclass(frozen=True)
class Source(ABC):
    """Where weights are stored."""

    path: Path

    @abstractmethod
    def read(self, *, ema: bool = False) -> Weights:
        """The weights; with `ema` their moving average, if there is one."""

    @abstractmethod
    def facts(self) -> Facts:
        """What `inspect_weights` shows in addition to the weights' info."""

    def state_dict(self, *, ema: bool) -> StateDict | None:
        """The tensors under the names of a torch file; None: the source is not a torch file."""
        return None


class WeightsFolderSource(Source):
    """A folder of `write_weights_folder`."""

    def read(self, *, ema: bool = False) -> Weights:
        return read_weights_folder(self.path)

    def facts(self) -> Facts:
        return {"kind": "weights folder"}


class CheckpointSource(Source):
    """A checkpoint of train.py."""

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
            source=self.path.name,
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
        return Weights({name: variables[name] for name in ("params", "batch_stats")}, info)

    def facts(self) -> Facts:
        return {"kind": "checkpoint", "has_ema": "ema" in self._arrays}


class TorchFileSource(Source):
    """A file that `read_torch_file` takes."""

    @cached_property
    def file(self) -> "TorchFile":
        """The content of the file."""
        from seresnext_jax.weights.torch_file import read_torch_file

        return read_torch_file(self.path)

    @cached_property
    def _sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self, *, ema: bool = False) -> Weights:
        ema = self.file.weights is None or (ema and self.file.ema is not None)
        weights = from_state_dict(self.state_dict(ema=ema), source=str(self.path))
        info = replace(
            weights.info,
            source=self.path.name,
            sha256=self._sha256,
            kind=f"torch {self.file.kind}",
            dtype=", ".join(self.file.dtypes),
            ema=ema,
            epoch=self.file.epoch,
        )
        return replace(weights, info=info)

    def facts(self) -> Facts:
        return {
            "has_ema": self.file.ema is not None,
            "has_optimizer": self.file.optimizer is not None,
            "best_prec1": self.file.best_prec1,
            "arch": None if self.file.arch is None else shown(self.file.arch),
        }

    def state_dict(self, *, ema: bool) -> StateDict:
        state = self.file.ema if ema else self.file.weights
        assert state is not None  # or `read` would have refused
        return state

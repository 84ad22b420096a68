"""PyTorch files of the original and of others: their weights, optimizer state and other content."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from seresnext_jax.commands import command
from seresnext_jax.errors import UserError, shown
from seresnext_jax.weights.identify import matching_architecture
from seresnext_jax.weights.plain import Budget, Record
from seresnext_jax.weights.state_dict import StateDict, plain_shapes
from seresnext_jax.weights.stored import (
    CannotConvertError,
    StoredTensor,
    is_tensor,
    read_array,
)
from seresnext_jax.weights.tables import Table, find_tables
from seresnext_jax.weights.torch_content import FileContent, explaining_damage, read_content

_MOST_EPOCHS = 10**6
_MODULE_KEYS = ("state_dict", "model", "net", "network", "module")
_HARMFUL = {
    "os", "posix", "nt", "sys", "subprocess", "builtins", "shutil", "socket", "importlib",
    "runpy", "ctypes", "pty", "commands", "webbrowser", "code", "pickle", "_pickle", "urllib",
    "requests",
}  # fmt: skip
"""Modules whose functions do not appear in a file by accident."""
_DEEPEST = 6
"""Largest number of nested levels in an optimizer's state."""


@dataclass(frozen=True, eq=False)
class TorchFile:
    """What one file contains; its methods read tensors as numpy arrays (bfloat16 as float32)."""

    path: Path
    content: FileContent
    tables: tuple[Table, ...]
    """All state dicts in the file."""
    wanted: str = ""
    """The name of the table to take; empty: the only one."""

    def choose_table(self, *, ema: bool = False) -> Table:
        """The table of the weights; with `ema`, that of the moving average, if there is one.

        If the file has only a moving average, it is taken in any case.

        Raises:
          UserError: there is none, or there are several.
        """
        if self.wanted:
            return self._named(self.wanted)
        plain = [table for table in self.tables if not table.is_average]
        averages = [table for table in self.tables if table.is_average]
        return self._only(averages if averages and (ema or not plain) else plain)

    def read_table(self, table: Table) -> StateDict:
        """The tensors of a table, named as in the file.

        Raises:
          UserError: a name is not text, or a tensor is damaged or not an array of real numbers.
        """
        for key in table.tensors:
            # Names appear in one-line messages, so they must not contain control characters.
            if not (isinstance(key, str) and key.isascii() and key.isprintable()):
                raise self._no_state_dict(_not_a_name(key))
        with explaining_damage(self.path):
            tensors = {name: self._read_tensor(x) for name, x in table.tensors.items()}
        return tensors

    @property
    def kind(self) -> str:
        """``state dict`` or ``checkpoint``."""
        return "state dict" if any(not table.path for table in self.tables) else "checkpoint"

    @property
    def epoch(self) -> int | None:
        """Epochs completed; None: not recorded."""
        epoch = _number(self._values.get("epoch"))
        return None if epoch is None or not 0 <= epoch <= _MOST_EPOCHS else int(epoch)

    @property
    def best_prec1(self) -> float | None:
        """Best validation accuracy in percent; None: not recorded."""
        return _number(self._values.get("best_prec1"))

    @property
    def arch(self) -> Any:
        """The architecture as the original's 20.06 release recorded it; None: not recorded."""
        return self._values.get("arch")

    @cached_property
    def optimizer(self) -> dict[str, Any] | None:
        """``{"state": {id: {"momentum_buffer": array}}, "param_groups": [...]}``, or None."""
        if not self.has_optimizer:
            return None
        with explaining_damage(self.path):
            optimizer: dict[str, Any] = self._read(self._values["optimizer"], Budget(), {})
        return optimizer

    @property
    def has_optimizer(self) -> bool:
        """Whether it contains the state of an optimizer."""
        optimizer = self._values.get("optimizer")
        return isinstance(optimizer, Mapping) and {"state", "param_groups"} <= optimizer.keys()

    def ignored(self, table: Table) -> list[str]:
        """Names of the entries of a table that are not tensors.

        Containers at the top level of the file are not listed.
        """
        nested = (Mapping, list, tuple, Record)
        return [
            shown(key)
            for key, x in table.entries.items()
            if not is_tensor(x) and not (isinstance(x, nested) and not table.path)
        ]

    @property
    def _values(self) -> Mapping[Any, Any]:
        value = self.content.value
        return value if isinstance(value, Mapping) else {}

    def _named(self, name: str) -> Table:
        for table in self.tables:
            if table.name == name:
                return table
        names = ", ".join(shown(table.name) for table in self.tables)
        raise UserError(f"{self.path} contains no table {shown(name)}: give --table one of {names}")

    def _only(self, tables: list[Table]) -> Table:
        """The only one of `tables`, or the only one that fits an architecture.

        Raises:
          UserError: there is none, or there are several.
        """
        if not tables:
            raise self._without_table()
        if len(tables) > 1:
            tables = [table for table in tables if _fits(table)] or tables
        if len(tables) > 1:
            names = ", ".join(f"{shown(t.name)} ({len(t.tensors)} tensors)" for t in tables)
            words = ["to-flax", str(self.path), "weights", "--table", tables[0].name]
            raise UserError(
                f"{self.path} contains several tables of tensors: {names}. Choose one: "
                f"{command('convert')} {shlex.join(words)}"
            )
        return tables[0]

    def _without_table(self) -> UserError:
        value = self.content.value
        if not isinstance(value, Mapping):
            kind = value.name if isinstance(value, Record) else type(value).__name__
            return UserError(f"{self.path} contains a {shown(kind)}: a state dict was expected")
        inner = next((v for k in _MODULE_KEYS if isinstance(v := value.get(k), Mapping)), value)
        return self._no_state_dict(_not_a_name(next(iter(inner))) if inner else "it is empty")

    def _no_state_dict(self, why: str) -> UserError:
        return UserError(
            f"{self.path} contains no state dict ({why}): name-to-tensor pairs were expected"
        )

    def _read_tensor(self, tensor: Any) -> Any:
        try:
            return read_array(tensor)
        except CannotConvertError as error:
            raise UserError(
                f"{self.path} contains {error}: save its weights as dense float32"
            ) from error

    def _read(self, value: Any, budget: Budget, done: dict[int, Any], depth: int = 0) -> Any:
        """Convert tensors in nested containers to arrays; values nested too deeply are left out."""
        budget.spend(1)
        if is_tensor(value):
            return self._read_tensor(value)
        if depth > _DEEPEST or not isinstance(value, Mapping | list | tuple):
            return value if isinstance(value, str | int | float | bool) else None
        if id(value) in done:
            return done[id(value)]
        if isinstance(value, Mapping):
            read: Any = {k: self._read(v, budget, done, depth + 1) for k, v in value.items()}
        else:
            read = [self._read(v, budget, done, depth + 1) for v in value]
        done[id(value)] = read
        return read


def open_torch_file(path: Path, *, table: str = "") -> TorchFile:
    """Open a ``.pth.tar``, ``.pt`` or ``.safetensors`` file without running anything in it.

    Args:
      table: the name of the state dict to take; empty: the only one.

    Raises:
      UserError: it is missing, damaged or of another kind, or contains objects that are not plain
        data.
    """
    content = read_content(path)
    with explaining_damage(path):
        tables = find_tables(content.value)
    if any(name.startswith("params/") for table in tables for name in table.shapes):
        raise UserError(
            f"{path} is a part of a weights folder: give the folder, with its metadata.json, or "
            "convert the weights again"
        )
    if content.refused:
        raise UserError(_refusal(path, content, tables))
    return TorchFile(path, content, tuple(tables), table)


def _refusal(path: Path, content: FileContent, tables: list[Table]) -> str:
    """The message on objects that are not plain data."""
    names = ", ".join(shown(name) for name in content.refused[:3])
    start = f"{path} would call {names} when loaded, so it was not opened: "
    if any(name.partition(".")[0] in _HARMFUL for name in content.refused):
        return f"{start}get the weights from a source you trust, as a plain state dict"
    lines = (
        f"import torch; c = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
        f"torch.save({_expression(content.value, tables)}, 'weights.pth')"
    )
    return f"{start}if you trust it, save only its weights where it can be loaded, with {lines}"


def _expression(value: Any, tables: list[Table]) -> str:
    """A Python expression for the state dict in ``c``, the content of a file."""
    plain = [table for table in tables if not table.is_average] or tables
    if plain:
        return "c" + "".join(f"[{key!r}]" for key in plain[0].path)
    if isinstance(value, Mapping):
        modules = [k for k, v in value.items() if isinstance(v, Record) and "_modules" in v.state]
        key = next((k for k in _MODULE_KEYS if k in modules), (modules or ["state_dict"])[0])
        return f"c[{key!r}].state_dict()" if modules else f"c[{key!r}]"
    return "c.state_dict()"


def _fits(table: Table) -> bool:
    try:
        return matching_architecture(plain_shapes(table.shapes)) is not None
    except UserError:  # two names mean the same entry
        return False


def _not_a_name(key: Any) -> str:
    label = key if isinstance(key, str | int | float) else type(key).__name__
    return f"{shown(ascii(label))} is not the name of a tensor"


def _number(value: Any) -> float | None:
    """A finite number, or the one in a tensor of one element; None for anything else."""
    if isinstance(value, StoredTensor) and value.size == 1:
        try:
            value = value.read().item()
        except (CannotConvertError, ValueError):
            return None
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:
        return None

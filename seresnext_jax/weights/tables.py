"""Finds the tables of tensors in a file: the values that are state dicts."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from seresnext_jax import torch_keys
from seresnext_jax.weights.stored import StoredArray, StoredTensor, dtype_of, is_tensor, shape_of

Tensor = StoredTensor | StoredArray

_DEPTH = 3
"""Largest number of dictionary levels above a table."""
_AVERAGE = {"ema", "averaged", "average", "swa", "shadow"}
"""Words in the name of a moving average."""
_NO_WEIGHTS = re.compile(r"optim|sched|scaler|rng|random", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Table:
    """A state dict in a file."""

    path: tuple[str, ...]
    """The keys that lead to it; empty: the file is the table."""
    entries: Mapping[Any, Any]
    part: str = ""
    """The prefix of its entries, if the dictionary contains several networks; otherwise ""."""

    @property
    def name(self) -> str:
        """Its name for ``--table``; ``.`` if the file is the table."""
        return "/".join((*self.path, self.part.removesuffix("."))).strip("/") or "."

    @property
    def is_average(self) -> bool:
        """Whether its name says that it is a moving average of the weights."""
        return _is_average(self.name)

    @property
    def prefix(self) -> str:
        """The prefix of most of its names, such as ``model.``; "" if there is none."""
        return torch_keys.common_prefix(key for key in self.entries if isinstance(key, str))

    @property
    def tensors(self) -> dict[Any, Tensor]:
        """Its tensors, by their names in the file."""
        return {key: x for key, x in self.entries.items() if is_tensor(x)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors whose names are text."""
        return {key: shape_of(x) for key, x in self.tensors.items() if isinstance(key, str)}

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The floating-point types of its tensors."""
        names = {
            dtype_of(x)
            for key, x in self.tensors.items()
            if not torch_keys.is_extra(str(key).removeprefix(self.prefix))
        }
        return tuple(sorted(n for n in names if n.startswith(("float", "bfloat"))))


def _is_average(name: str) -> bool:
    return not _AVERAGE.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def find_tables(value: Any) -> list[Table]:
    """The state dicts in the content of a file, in file order.

    If any table has a matrix, those with only vectors, such as class weights, are left out.
    """
    found = [Table(path, entries) for path, entries in _dictionaries(value, (), set())]
    tables = [table for table in found if _has_matrix(table.entries)]
    tables = tables or [table for table in found if _is_mostly_tensors(table.entries)]
    return [part for table in tables for part in _split(table)]


def _dictionaries(
    value: Any, path: tuple[str, ...], seen: set[tuple[int, bool]]
) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """The dictionaries in a value, with the keys that lead to them.

    One that occurs several times is yielded at most once as weights and once as an average.
    """
    identity = (id(value), _is_average("/".join(path)))
    if not isinstance(value, Mapping) or identity in seen:
        return
    seen.add(identity)
    yield path, value
    if len(path) < _DEPTH:
        for key, inner in value.items():
            named = isinstance(key, str) and key.isascii() and key.isprintable()
            if named and isinstance(inner, Mapping) and not _NO_WEIGHTS.search(key):
                yield from _dictionaries(inner, (*path, key), seen)


def _has_matrix(entries: Mapping[Any, Any]) -> bool:
    return any(
        is_tensor(x) and len(shape_of(x)) > 1 and dtype_of(x).startswith(("float", "bfloat"))
        for x in entries.values()
    )


def _is_mostly_tensors(entries: Mapping[Any, Any]) -> bool:
    return 0 < len(entries) <= 2 * sum(map(is_tensor, entries.values()))


def _split(table: Table) -> list[Table]:
    """A table for each network, if a dictionary contains several: ``model.`` and ``ema_model.``."""
    names = {key for key in table.entries if isinstance(key, str) and key.isprintable()}
    stem = "conv1.weight"
    prefixes = [
        prefix
        for key in table.entries
        if key in names and key.endswith(stem)
        if (prefix := key.removesuffix(stem)) + "bn1.weight" in names
        if any(f"{prefix}{block}.conv1.weight" in names for block in ("layer1.0", "layers.0.0"))
    ]
    if len(prefixes) < 2:
        return [table]
    parts: dict[str, dict[Any, Any]] = {prefix: {} for prefix in prefixes}
    for key, value in table.entries.items():
        owners = [prefix for prefix in prefixes if str(key).startswith(prefix)]
        for prefix in [max(owners, key=len)] if owners else prefixes:
            parts[prefix][key] = value
    return [Table(table.path, entries, prefix) for prefix, entries in parts.items()]

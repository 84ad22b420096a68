"""Describes the content of a file in a few words, for people who don't know what it is."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from seresnext_jax.errors import UserError
from seresnext_jax.weights.identify import identify
from seresnext_jax.weights.plain import Known, Record
from seresnext_jax.weights.state_dict import find_spelling, plain_shapes
from seresnext_jax.weights.stored import StoredArray, dtype_of, is_tensor, shape_of
from seresnext_jax.weights.tables import Table

_LISTED = 40
"""Largest number of entries that are shown; larger inner containers show only their length."""
_LONGEST = 200


def describe_table(table: Table) -> dict[str, Any]:
    """Describe a state dict: the network that it belongs to, or why it fits none."""
    shapes = table.shapes
    facts = {
        "name": table.name,
        "tensors": len(table.tensors),
        "numbers": sum(math.prod(shape) for shape in shapes.values()),
        "dtypes": list(table.dtypes),
        "moving_average": table.is_average,
        "prefix": table.prefix,
    }
    try:
        spelling = find_spelling(shapes, source="it")
        plain = plain_shapes(shapes, spelling)
        architecture, num_classes = identify(plain, source="it", name=spelling.name)
        fits: dict[str, Any] = {"architecture": architecture, "num_classes": num_classes}
        return facts | fits | {"prefix": spelling.prefix, "difference": None}
    except UserError as error:
        return facts | {"architecture": None, "num_classes": None, "difference": str(error)}


def describe_content(value: Any, tables: Iterable[Table]) -> dict[str, Any]:
    """Describe what a file contains besides tables, tensors and optimizer state; may be {}."""
    entries = {id(table.entries) for table in tables}
    if not isinstance(value, Mapping):
        return {}
    rest = {
        key: inner
        for key, inner in value.items()
        if id(inner) not in entries and not is_tensor(inner) and key != "optimizer"
    }
    shown = {_text(key): describe(rest[key]) for key in list(rest)[:_LISTED]}
    return shown | ({"...": f"{len(rest) - _LISTED} more"} if len(rest) > _LISTED else {})


def describe(value: Any) -> Any:
    """Describe a value as plain values for JSON; large and deeply nested ones are summarized."""
    return _describe(value, depth=2)


def _describe(value: Any, depth: int) -> Any:
    if isinstance(value, Record):
        value = _of_record(value)
    if isinstance(value, bool | type(None)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else "a large integer"
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else value[:_LONGEST] + "..."
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    if isinstance(value, complex):
        return str(value)
    if isinstance(value, Known):
        return value.name
    if is_tensor(value):
        return f"{dtype_of(value)} {list(shape_of(value))}"
    if isinstance(value, StoredArray):
        return "an array"
    if depth and isinstance(value, Mapping) and len(value) <= _LISTED:
        return {_text(key): _describe(inner, depth - 1) for key, inner in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset) and len(value) <= _LISTED:
        return [_describe(inner, depth - 1) for inner in value]
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return f"{len(value)} entries"
    return type(value).__name__


def _of_record(record: Record) -> Any:
    """An object's attributes; for OmegaConf's types, their content."""
    for name in ("_content", "_val"):
        if record.name.startswith("omegaconf.") and name in record.state:
            inner = record.state[name]
            return _of_record(inner) if isinstance(inner, Record) and inner is not record else inner
    return record.state or {record.name: record.args}


def _text(key: Any) -> str:
    return key[:_LONGEST] if isinstance(key, str) else str(_describe(key, 1))[:_LONGEST]

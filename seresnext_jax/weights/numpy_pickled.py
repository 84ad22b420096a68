"""Builds the numpy types, scalars and arrays in a pickle from their bytes."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from seresnext_jax.weights.plain import Known, NotPlainError, to_bytes
from seresnext_jax.weights.stored import StoredArray, axes

_SPEC = re.compile(r"[|<>=]?([biufcmMSUO?])(\d{0,6})")
_UNITS = {"Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"}


@dataclass(eq=False)
class DType:
    """A numpy dtype while its pickle is being read."""

    spec: str
    """Its kind and item size, such as ``f4``."""
    order: str = "|"
    unit: str = ""
    """Unit of a date or duration, such as ``[ns]``; otherwise empty."""

    def numpy(self) -> np.dtype[Any]:
        """The complete numpy dtype."""
        return np.dtype(f"{self.order}{self.spec}{self.unit}")


def make_dtype(spec: Any, *_: Any) -> DType:
    """``numpy.dtype(spec, align, copy)``."""
    text = to_bytes(spec).decode("ascii")
    found = _SPEC.fullmatch(text)
    if not found:
        raise NotPlainError(f"numpy.dtype {text}")
    kind, size = found.groups()
    if kind == "O":
        return DType("O")
    return DType("?" if text.lstrip("|<>=") in ("?", "b1") else kind + size)


def set_dtype(dtype: DType, state: Any) -> None:
    """Set the rest of a dtype's saved state: its byte order, and the unit of a date.

    Raises:
      ValueError: it has fields or a subdtype, or the state is malformed.
    """
    _, order, subdtype, names, fields, *_ = state
    order = to_bytes(order).decode("ascii")
    if order not in ("<", ">", "|", "=") or not (subdtype is names is fields is None):
        raise ValueError("a numpy type with fields")
    dtype.order = order
    if dtype.spec[0] in "mM" and isinstance(state[-1], tuple):
        unit, count = state[-1][1][:2]
        unit = to_bytes(unit).decode("ascii")
        if unit in _UNITS and type(count) is int and 1 <= count < 10**6:
            dtype.unit = f"[{count}{unit}]"


def make_scalar(dtype: Any, data: Any = b"") -> Any:
    """``numpy.core.multiarray.scalar``: a Python value, a date as text."""
    if dtype.spec == "O":
        return data
    kind, data = dtype.numpy(), to_bytes(data)
    if not kind.itemsize or len(data) != kind.itemsize:
        raise ValueError("a scalar of another size")
    if kind.kind == "U":
        codec = "utf-32-be" if kind.byteorder == ">" else "utf-32-le"
        return data.decode(codec).rstrip("\0")
    value = np.frombuffer(data, kind)[0]
    return str(value) if kind.kind in "mM" else value.item()


def make_empty_array(kind: Any, *_: Any) -> StoredArray:
    """``numpy.core.multiarray._reconstruct``: an array whose state follows."""
    if not (isinstance(kind, Known) and kind.name == "numpy.ndarray"):
        raise NotPlainError(getattr(kind, "name", "numpy.core.multiarray._reconstruct"))
    return StoredArray()


def set_array(stored: StoredArray, state: Any) -> None:
    """Fill an array from ``(version, shape, dtype, is_fortran, data)``."""
    shape, dtype, is_fortran, data = state[-4:]
    stored.array = _array(data, dtype, shape, "F" if is_fortran else "C")


def make_array(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> StoredArray:
    """``numpy._core.numeric._frombuffer``."""
    return StoredArray(_array(data, dtype, shape, "F" if order == "F" else "C"))


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    if dtype.spec == "O":
        if not isinstance(data, list):
            raise ValueError("an array of objects without a list")
        return data
    kind = dtype.numpy()
    if not kind.itemsize:
        raise ValueError("an array of nothing")
    flat = np.frombuffer(to_bytes(data), kind)
    return flat.reshape(axes(shape), order=order)

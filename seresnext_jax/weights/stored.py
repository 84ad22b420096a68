"""Tensors stored in a file: describes them without reading them, and reads one as an array."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from seresnext_jax.weights.info import Array

ITEM_SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4,
    "int64": 8, "uint64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
    "complex32": 4, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1,
}  # fmt: skip
"""Bytes per element of each of PyTorch's dtypes."""

_MOST_AXES = 16


class CannotConvertError(Exception):
    """A tensor that is not a dense array of real numbers; the message is a noun phrase."""


@dataclass(eq=False)
class Storage:
    """A one-dimensional array in a file; tensors are views of it."""

    dtype: str
    numel: int
    device: str
    data: Array | None = None
    """Its bytes (uint8), mapped from the file; None until the whole pickle has been read."""
    big_endian: bool = False


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as its file describes it."""

    shape: tuple[int, ...]
    dtype: str
    """PyTorch's name, such as ``bfloat16``."""
    layout: str = "strided"
    device: str = "cpu"
    storage: Storage | None = None
    """None: it has no values that can be read."""
    offset: int = 0
    strides: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    def read(self) -> Array:
        """Its values; bfloat16 as float32.

        Raises:
          CannotConvertError: it has no values, is sparse, complex or of a 4- or 8-bit float type,
            or is larger than its storage.
        """
        if self.storage is None or self.layout != "strided" or not _is_real(self.dtype):
            raise CannotConvertError(f"a {self.layout} {self.dtype} tensor on {self.device}")
        row, item = self.storage.data, ITEM_SIZES[self.dtype]
        if row is None:
            raise ValueError("a tensor whose data has not been read")
        if self.size * item > row.nbytes:
            # An array of this shape could fill the memory.
            raise CannotConvertError(f"a tensor of shape {self.shape} that repeats fewer numbers")
        kind = "uint16" if self.dtype == "bfloat16" else self.dtype
        numbers = row.view(np.dtype(kind).newbyteorder(">" if self.storage.big_endian else "<"))
        array = np.lib.stride_tricks.as_strided(
            numbers[self.offset :], self.shape, [step * item for step in self.strides]
        )
        if self.dtype == "bfloat16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        # PyTorch only accepts aligned arrays.
        return np.require(array, array.dtype.newbyteorder("="), "A")


def stored_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None = None
) -> StoredTensor:
    """Create a tensor over a storage.

    Args:
      offset: of the first element, in elements, like `strides`.
      dtype: PyTorch's name; None: the dtype of the storage.

    Raises:
      ValueError: the tensor does not fit the storage.
    """
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    shape, strides = axes(shape), axes(strides)
    dtype = dtype or storage.dtype
    item = ITEM_SIZES[dtype]
    available = storage.numel * ITEM_SIZES[storage.dtype] // item
    if not is_count(offset) or len(shape) != len(strides):
        raise ValueError("a tensor with an impossible place")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if last >= available if math.prod(shape) else offset > available:
        raise ValueError("a tensor that is longer than its storage")
    return StoredTensor(shape, dtype, "strided", storage.device, storage, offset, strides)


def axes(value: Any) -> tuple[int, ...]:
    """Check that a value is a tuple of sizes or strides, and return it.

    Raises:
      ValueError: it is something else.
    """
    is_short = isinstance(value, tuple | list) and len(value) <= _MOST_AXES
    if not (is_short and all(map(is_count, value))):
        raise ValueError("a tensor with impossible axes")
    return tuple(value)


def is_count(value: Any) -> bool:
    """Whether a value is an integer from 0 to 2**62 - 1."""
    return type(value) is int and 0 <= value < 2**62


@dataclass(eq=False)
class StoredArray:
    """A numpy array in a pickle."""

    array: Any = None
    """An array, or a list for an array of objects; None until its state has been read."""


def is_tensor(value: Any) -> bool:
    """Whether a value from a file is a tensor or a numeric array."""
    if isinstance(value, StoredArray):
        return isinstance(value.array, np.ndarray) and value.array.dtype.kind in "biuf"
    return isinstance(value, StoredTensor)


def read_array(tensor: StoredTensor | StoredArray) -> Array:
    """The values of what `is_tensor` accepts.

    Raises:
      CannotConvertError: as `StoredTensor.read`.
    """
    if isinstance(tensor, StoredArray):
        array: Array = tensor.array
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    return tensor.read()


def shape_of(tensor: StoredTensor | StoredArray) -> tuple[int, ...]:
    """The shape of what `is_tensor` accepts, without reading it."""
    return tensor.shape if isinstance(tensor, StoredTensor) else tuple(tensor.array.shape)


def dtype_of(tensor: StoredTensor | StoredArray) -> str:
    """The name of the dtype of what `is_tensor` accepts, without reading it."""
    return tensor.dtype if isinstance(tensor, StoredTensor) else str(tensor.array.dtype)


def _is_real(dtype: str) -> bool:
    return dtype in ITEM_SIZES and not dtype.startswith(("complex", "float8", "float4"))

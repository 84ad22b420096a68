"""Reads the bytes of a PyTorch file as plain Python values and tensors.

Reading never runs code from the file and does not need PyTorch: pickled.py reads the pickles as
data. The tensors' values are memory-mapped, and read when they are used.
"""

import json
import mmap
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from seresnext_jax.errors import UserError, shown
from seresnext_jax.weights.file_kind import check_archive, file_kind
from seresnext_jax.weights.info import Array
from seresnext_jax.weights.pickled import DataUnpickler
from seresnext_jax.weights.plain import Known
from seresnext_jax.weights.stored import ITEM_SIZES, Storage, StoredTensor, stored_tensor

_DAMAGE = (
    # What pickletools, zipfile and numpy raise for malformed bytes.
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    MemoryError,
    OverflowError,
    struct.error,
)
_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file that torch.save wrote before torch 1.6."""
_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16",
    "U32": "uint32", "U64": "uint64", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip


@dataclass(frozen=True)
class FileContent:
    """What a file contains."""

    format: str
    """``torch zip``, ``torch legacy``, ``pickle`` or ``safetensors``."""
    value: Any
    refused: tuple[str, ...] = ()
    """Names of objects that are not plain data and were not read."""


def read_content(path: Path) -> FileContent:
    """What a file contains: nested containers of plain values and stored tensors.

    Raises:
      UserError: the file is missing, damaged or of another kind.
    """
    readers = {"safetensors": _read_safetensors, "zip": _read_zip, "pickle": _read_pickles}
    with explaining_damage(path):
        content = readers[file_kind(path)](path)
    return content


@contextmanager
def explaining_damage(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged file into a one-line `UserError`.

    Raises:
      UserError: the block raised one of these errors.
    """
    try:
        yield
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({shown(error)}): get it again"
        ) from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is truncated: get it again") from error
    except _DAMAGE as error:
        raise UserError(f"{path} is not a PyTorch file, or it is damaged: get it again") from error


# ---- safetensors -------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> FileContent:
    with safe_open(path, framework="np"):
        pass  # opening checks the header, the offsets of the tensors and the length of the file
    data = _mapped(path)
    length = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            tensors[name] = StoredTensor(shape, entry["dtype"].lower())
            continue
        row = data[8 + length + start : 8 + length + end]
        storage = Storage(dtype, row.nbytes // ITEM_SIZES[dtype], "cpu", row)
        tensors[name] = stored_tensor(storage, 0, shape, _dense_strides(shape))
    return FileContent("safetensors", tensors)


def _dense_strides(shape: tuple[int, ...]) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return strides[::-1]


# ---- torch.save --------------------------------------------------------------------------------


class _Storages:
    """The storages that a file's pickle asks for."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def find(self, identity: Any) -> Storage:
        """The storage of a persistent id: ``("storage", type, key, device, numel, ...)``."""
        kind, dtype, key, device, numel, *view = identity
        if kind != "storage" or not isinstance(dtype, Known) or dtype.dtype is None:
            raise ValueError("a persistent id that is not a storage")
        if type(numel) is not int or numel < 0 or (view and view[0] is not None):
            raise ValueError("a storage of another kind")
        new = Storage(dtype.dtype, numel, str(device))
        found = self.by_key.setdefault(str(key), new)
        if (found.dtype, found.numel) == (new.dtype, numel):
            return found
        # The pickle asks for the same bytes as another type.
        raise ValueError("a storage with two types")


def _read_zip(path: Path) -> FileContent:
    archive, folder = check_archive(path)
    data, storages = _mapped(path), _Storages()
    entries = {entry.filename: entry for entry in archive.infolist()}
    with archive:
        unpickler = DataUnpickler(storages.find)
        pickled = _entry_bytes(data, entries[f"{folder}data.pkl"]).tobytes()
        value = unpickler.load(BytesIO(pickled))
        order = entries.get(f"{folder}byteorder")
        big = order is not None and _entry_bytes(data, order).tobytes() == b"big"
    for key, storage in storages.by_key.items():
        row = _entry_bytes(data, entries[f"{folder}data/{key}"])
        _fill(storage, row, big_endian=big)
    return FileContent("torch zip", value, tuple(unpickler.refused))


def _entry_bytes(data: Array, entry: zipfile.ZipInfo) -> Array:
    """The bytes of an uncompressed entry, without copying them."""
    at = entry.header_offset
    header = data[at : at + 30].tobytes()
    if header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile("no local header")
    names, extra = struct.unpack("<HH", header[26:30])
    start = at + 30 + names + extra
    row = data[start : start + entry.file_size]
    if row.nbytes != entry.file_size:
        raise zipfile.BadZipFile("an entry after the end of the file")
    return row


def _read_pickles(path: Path) -> FileContent:
    """A file that torch.save wrote before torch 1.6, or a single pickle."""
    data, storages = _mapped(path), _Storages()
    unpickler = DataUnpickler(storages.find)
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as file:
        value = unpickler.load(file)
        if value != _MAGIC:
            if storages.by_key:
                raise ValueError("storages in a plain pickle")
            return FileContent("pickle", value, tuple(unpickler.refused))
        unpickler.load(file)  # the version
        system = unpickler.load(file)
        value = unpickler.load(file)
        keys = unpickler.load(file) if storages.by_key else []
        at = file.tell()
    big = isinstance(system, dict) and system.get("little_endian") is False
    for key in keys:
        storage = storages.by_key.pop(str(key))
        numel = int.from_bytes(data[at : at + 8].tobytes(), "big" if big else "little")
        if numel != storage.numel:
            raise ValueError("a storage of another length")
        size = numel * ITEM_SIZES[storage.dtype]
        _fill(storage, data[at + 8 : at + 8 + size], big_endian=big)
        at += 8 + size
    if storages.by_key:
        raise ValueError("a storage without data")
    return FileContent("torch legacy", value, tuple(unpickler.refused))


def _fill(storage: Storage, row: Array, *, big_endian: bool) -> None:
    item = ITEM_SIZES[storage.dtype]
    if row.nbytes < storage.numel * item:
        raise ValueError("a storage that is truncated")
    storage.data, storage.big_endian = row[: storage.numel * item], big_endian


def _mapped(path: Path) -> Array:
    """The memory-mapped bytes of a file; changing the array does not change the file."""
    return np.memmap(path, np.uint8, "c")

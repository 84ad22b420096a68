"""A split as tar files (WebDataset's convention): any image is read directly, by its position.

A label is the class folder in the member's name (``n01440764/x.jpg``), or the number in the member
of the same name that ends with .cls (``000123.jpg``, ``000123.cls``).
"""

import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from seresnext_jax.commands import command
from seresnext_jax.data.files import FileList
from seresnext_jax.data.gone import DataGone
from seresnext_jax.data.images import Member
from seresnext_jax.data.walk import is_hidden, listing
from seresnext_jax.errors import UserError, printable

SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
PACKING = "packing.json"
"""The plan of a folder of shards that is not complete yet (pack.py)."""
BLOCK = 512
"""Size of a tar header, in bytes."""
_OPEN_FILES = 128

PLACE = np.dtype(
    [("shard", np.int32), ("length", np.int64), ("offset", np.int64), ("header", np.uint32)]
)
"""Where an image is: the shard's number, the image's size and offset in bytes, and the CRC-32 of
the tar header before it. The header contains the name, size, time and a checksum."""


@dataclass(frozen=True, kw_only=True)
class ShardList(FileList):
    """The M images of a split that are members of tar files."""

    shards: tuple[str, ...]
    """File names in the split's folder."""
    lengths: tuple[int, ...]
    """Sizes of the shards in bytes."""
    places: np.ndarray
    """(M,) `PLACE`."""
    in_shards: ClassVar[bool] = True
    fix_for_bad: ClassVar[str] = "replace it in the class folders and pack them again"

    def path(self, index: int) -> str:
        """The path of the shard and the name of the member, for messages."""
        return f"{self.file_of(index)}: {self.paths[index]}"

    def file_of(self, index: int) -> str:
        """The path of the shard that contains image `index`."""
        return os.path.join(self.folder, self.shards[self.places["shard"][index]])

    def source(self, index: int) -> Member:
        """The bytes of image `index`.

        Raises:
          DataGone: the shard can't be read.
          UserError: it has changed since it was listed.
        """
        return Member(self.paths[index], self.read(index))

    def num_bytes(self, index: int) -> int:
        """Size of image `index` in bytes."""
        return int(self.places["length"][index])

    def read(self, index: int) -> bytes:
        """The bytes of image `index`; raises as `source`."""
        place = self.places[index]
        path = self.file_of(index)
        for last in (False, True):
            try:
                found = _read_member(path, place)
            except OSError as error:
                if last:
                    raise DataGone(
                        f"can't read {printable(path)}: {error.strerror}; make it available again "
                        "and start the program again"
                    ) from error
            else:
                if found is not None:
                    return found
            _open.cache_clear()  # the file may have been replaced after it was opened
        raise UserError(
            f"{printable(path)} has changed since it was listed: start the program again "
            f"(if that does not help, remove {printable(index_beside(self.folder))})"
        )


def _read_member(path: str, place: np.void) -> bytes | None:
    """The bytes at a `PLACE` of a shard; None if the tar header before them has changed.

    Raises:
      OSError: the shard can't be read.
    """
    length, start = int(place["length"]), int(place["offset"]) - BLOCK
    file = _open(path)  # keeps the descriptor open
    found = os.pread(file.descriptor, length + BLOCK, start)
    if len(found) < length + BLOCK or zlib.crc32(found[:BLOCK]) != place["header"]:
        return None
    return found[BLOCK:]


class _OpenFile:
    """A file that is open for as long as something uses it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_open = lru_cache(_OPEN_FILES)(_OpenFile)


def index_beside(folder: Path) -> Path:
    """The index that pack.py writes beside the shards."""
    return folder / "index.npz"


def find_shards(folder: Path) -> tuple[str, ...]:
    """The names of the tar files in a split's folder, sorted; () if it is missing or has folders.

    Raises:
      UserError: the folder can't be listed, is not packed completely, or has compressed tar files.
    """
    if not folder.is_dir():
        return ()
    with listing():
        entries = [e for e in os.scandir(folder) if not is_hidden(e.name)]
        if any(entry.is_dir() for entry in entries):
            return ()
        names = [e.name for e in entries if e.name.endswith(SUFFIX) and e.is_file()]
    if any(entry.name == PACKING for entry in entries):
        raise UserError(
            f"{printable(folder)} is not packed completely: run "
            f"{command('pack_data')} again as before, or give another --data.root"
        )
    compressed = sorted(entry.name for entry in entries if entry.name.endswith(_COMPRESSED))
    if compressed:
        raise UserError(
            f"{printable(folder)} has compressed tar files (first: {printable(compressed[0])}), in "
            "which an image can't be read by its position: decompress or remove them"
        )
    return tuple(sorted(names))

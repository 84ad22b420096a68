"""A split as tar files (WebDataset's convention): any image is read directly, by its position.

A label is the class folder in the member's name (``n01440764/x.jpg``), or the number in the member
of the same name that ends with .cls (``000123.jpg``, ``000123.cls``).
"""

import os
import tarfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from seresnext_jax.commands import command
from seresnext_jax.data.files import FileList, Listing, Progress
from seresnext_jax.data.formats import has_image_suffix
from seresnext_jax.data.gone import DataGone
from seresnext_jax.data.images import Member
from seresnext_jax.data.paths import Paths
from seresnext_jax.data.walk import is_hidden, listing, place_state
from seresnext_jax.errors import UserError, printable

SUFFIX = ".tar"
PACKING = "packing.json"
"""The plan of a folder of shards that is not complete yet (pack.py)."""
BLOCK = 512
"""Size of a tar header, in bytes."""
_MOST_PADDING = 2**20
"""Bytes of zeros after the last member; a file whose space was only reserved has more."""
_OPEN_FILES = 128

PLACE = np.dtype(
    [("shard", np.int32), ("length", np.int64), ("offset", np.int64), ("header", np.uint32)]
)
"""Where an image is: the shard's number, the image's size and place in bytes, and the CRC-32 of
the tar header before it, which contains its name, size, time and checksum."""


@dataclass(frozen=True, kw_only=True)
class ShardList(FileList):
    """The M images of a split that are members of tar files."""

    shards: tuple[str, ...]
    """File names in the split's folder."""
    lengths: tuple[int, ...]
    """Their sizes in bytes."""
    places: np.ndarray
    """(M,) `PLACE`."""
    in_shards: ClassVar[bool] = True

    def path(self, index: int) -> str:
        """The path of a shard, and the name of the member: for messages."""
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
            f"{printable(path)} is not as it was when it was listed: start the program again "
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
    """The names of the tar files in a split's folder, sorted; none if it has folders.

    Raises:
      UserError: the folder can't be listed, or is not packed completely.
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
    return tuple(sorted(names))


def list_shards(folder: Path, progress: Progress) -> Listing:
    """List the images in a split's tar files, in the order of the same images in folders.

    Labels without class names keep the order in the shards.

    Args:
      progress: called after each shard.

    Raises:
      UserError: a shard can't be read, or an image has no label.
    """
    shards = find_shards(folder)
    members: list[_Found] = []
    for number, name in enumerate(shards):
        members += _read_members(folder / name, number)
        progress(f"listing {printable(folder)}: {number + 1} of {len(shards)} shards")
    with listing():
        states = {name: place_state(folder / name) for name in shards}
        lengths = tuple((folder / name).stat().st_size for name in shards)
    numbers = {member.key: member.number for member in members if member.number is not None}
    images = [m for m in members if _is_image(m, of_sample=bool(numbers))]
    used = {id(member) for member in images}
    others = [m.name for m in members if m.number is None and id(m) not in used]
    class_names: tuple[str, ...] = ()
    if numbers:
        labels = _labels_by_number(folder, images, numbers)
    else:
        images.sort(key=lambda member: (member.name.partition("/")[0], member.name))
        labels, class_names = _labels_by_folder(folder, images)
    files = ShardList(
        folder,
        Paths.pack([member.name for member in images]),
        labels,
        class_names,
        tuple(others),
        shards=shards,
        lengths=lengths,
        places=np.array([member.place for member in images], PLACE),
    )
    return Listing(files, states)


def _is_image(member: "_Found", *, of_sample: bool) -> bool:
    """Whether a member is an image; the image of a sample has one suffix, unlike ``0.mask.png``."""
    if member.place is None or not has_image_suffix(member.name):
        return False
    return not of_sample or os.path.basename(member.name).count(".") == 1


_Place = tuple[int, int, int, int]


class _Found(NamedTuple):
    name: str
    place: _Place | None
    """As in `PLACE`; None for what is not a plain file."""
    key: str
    """What the members of one sample have in common: the shard, and the name up to its first
    dot."""
    number: int | None
    """The label in a .cls member."""


def _read_members(path: Path, shard: int) -> list[_Found]:
    """The files in a shard, without hidden ones."""
    found = []
    places: dict[str, _Place | None] = {}
    try:
        with path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                name = os.path.normpath(member.name).lstrip("/")
                if member.isdir() or any(map(is_hidden, name.split("/"))):
                    continue
                place: _Place | None = None
                if member.isreg() and not member.issparse():
                    place = (shard, member.size, member.offset_data, _header_crc(tar, member))
                elif member.islnk():  # another name of an earlier member
                    place = places.get(os.path.normpath(member.linkname).lstrip("/"))
                if name in places:
                    raise ValueError(f"{name} is in it twice")
                places[name] = place
                folder, base = os.path.split(name)
                key = f"{shard}/{folder}/{base.partition('.')[0]}"
                number = None
                if base.endswith(".cls") and place is not None:
                    raw.seek(place[2])
                    number = _label(raw.read(place[1]))
                found.append(_Found(name, place, key, number))
            _check_end(path, tar.offset)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(
            f"{printable(path)} can't be read as a shard ({error}): replace or remove it"
        ) from error
    return found


def _check_end(path: Path, end: int) -> None:
    """Refuse a truncated shard; if a header is cut, tarfile takes it for a shorter shard."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(_MOST_PADDING + 1)
    if not BLOCK <= len(rest) <= _MOST_PADDING or any(rest):
        raise ValueError("unexpected end of data")


def _label(text: bytes) -> int:
    """The number in a .cls member."""
    digits = text.decode("ascii").strip()
    if not digits.isdecimal() or int(digits) >= 2**31:
        raise ValueError(f"{digits!r} is no label")
    return int(digits)


def _header_crc(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.fileobj
    assert file is not None
    file.seek(member.offset_data - BLOCK)
    return zlib.crc32(file.read(BLOCK))


def _labels_by_number(folder: Path, images: list[_Found], numbers: dict[str, int]) -> np.ndarray:
    without = [member.name for member in images if member.key not in numbers]
    if without:
        raise UserError(
            f"{len(without)} images in {printable(folder)} have no .cls beside them "
            f"({printable(without[0])}, ...): add them, or pack class folders with "
            f"{command('pack_data')}"
        )
    return np.array([numbers[member.key] for member in images], np.int32)


def _labels_by_folder(folder: Path, images: list[_Found]) -> tuple[np.ndarray, tuple[str, ...]]:
    names = [member.name.partition("/")[0] for member in images]
    loose = [name for name, member in zip(names, images, strict=True) if name == member.name]
    if loose:
        raise UserError(
            f"{len(loose)} images in {printable(folder)} are in no class folder and have no .cls "
            f"({printable(loose[0])}, ...): pack class folders with "
            f"{command('pack_data')}"
        )
    class_names = tuple(sorted(set(names)))
    labels = {name: label for label, name in enumerate(class_names)}
    return np.array([labels[name] for name in names], np.int32), class_names

"""Lists the images in tar files that pack.py has not indexed: names, places and labels."""

import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from seresnext_jax.commands import command
from seresnext_jax.data.files import Listing, Progress
from seresnext_jax.data.formats import has_image_suffix
from seresnext_jax.data.paths import Paths
from seresnext_jax.data.shards import BLOCK, PLACE, ShardList, find_shards
from seresnext_jax.data.walk import is_hidden, listing, place_state
from seresnext_jax.errors import UserError, printable

_MOST_PADDING = 2**20
"""Maximum number of zero bytes after the last member; a file that was allocated but not completely
written has more."""
_NO_LABEL = -1


def list_shards(folder: Path, progress: Progress) -> Listing:
    """List the images in a split's tar files, in the order that they would have in class folders.

    Images with labels from .cls members keep their order in the shards.

    Args:
      progress: called after each shard.

    Raises:
      UserError: a shard can't be read, or an image has no label.
    """
    shards = find_shards(folder)
    parts: list[_Part] = []
    for number, name in enumerate(shards):
        parts.append(_read_shard(folder / name, number))
        progress(f"listing {printable(folder)}: {number + 1} of {len(shards)} shards")
    with listing():
        states = {name: place_state(folder / name) for name in shards}
        lengths = tuple((folder / name).stat().st_size for name in shards)
    names = [name for part in parts for name in part.names]
    places = np.concatenate([part.places for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    others = [part.others for part in parts]
    class_names: tuple[str, ...] = ()
    if (labels != _NO_LABEL).any():
        of_sample = np.array([os.path.basename(name).count(".") == 1 for name in names])
        others.append(Paths.pack([names[i] for i in np.flatnonzero(~of_sample)]))
        order = np.flatnonzero(of_sample)
    else:
        order = np.array(sorted(range(len(names)), key=lambda i: _by_class(names[i])), np.int64)
    names, places, labels = [names[i] for i in order.tolist()], places[order], labels[order]
    if (labels != _NO_LABEL).any():
        _check_labels(folder, names, labels)
    else:
        labels, class_names = _labels_by_folder(folder, names)
    files = ShardList(
        folder,
        Paths.pack(names),
        labels,
        class_names,
        Paths.join(others),
        shards=shards,
        lengths=lengths,
        places=places,
    )
    return Listing(files, states)


def _by_class(name: str) -> str:
    """Sort key: by class folder, then by the rest of the name."""
    return name.replace("/", "\0", 1)


def _check_labels(folder: Path, names: list[str], labels: np.ndarray) -> None:
    without = np.flatnonzero(labels == _NO_LABEL)
    if len(without):
        raise UserError(
            f"{len(without)} image(s) in {printable(folder)} have no .cls file beside them "
            f"(first: {printable(names[without[0]])}): add them, or pack class folders with "
            f"{command('pack_data')}"
        )


def _labels_by_folder(folder: Path, names: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels, (M,) int32, and the class names.

    Raises:
      UserError: an image is not in a class folder.
    """
    loose = [name for name in names if "/" not in name]
    if loose:
        raise UserError(
            f"{len(loose)} image(s) in {printable(folder)} are not in a class folder and have no "
            f".cls file (first: {printable(loose[0])}): pack class folders with "
            f"{command('pack_data')}"
        )
    classes = [name.partition("/")[0] for name in names]
    class_names = tuple(sorted(set(classes)))
    label_of = {name: label for label, name in enumerate(class_names)}
    return np.array([label_of[name] for name in classes], np.int32), class_names


# ---- one shard ---------------------------------------------------------------------------------

_Place = tuple[int, int, int, int]
"""The fields of `PLACE`: shard, length, offset, header."""


class _Part(NamedTuple):
    """What one shard contains."""

    names: list[str]
    """Names of the R images: plain files, or hard links to one, with the suffix of an image."""
    places: np.ndarray
    """(R,) `PLACE`."""
    labels: np.ndarray
    """(R,) int32: the number in the .cls member of the same sample, or `_NO_LABEL`."""
    others: Paths
    """Names of the other files, except .cls."""


class _Member(tarfile.TarInfo):
    """A member with the CRC-32 of its header."""

    crc: int

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        member.crc = zlib.crc32(buf)
        return member


def _read_shard(path: Path, shard: int) -> _Part:
    """List the images, labels and other files in a shard, without hidden files.

    Raises:
      UserError: it can't be read.
    """
    images: list[tuple[str, _Place]] = []
    others: list[str] = []
    numbers: dict[str, int] = {}
    try:
        with path.open("rb") as raw:
            for name, place in _members(raw, shard):
                if place is None:
                    others.append(name)
                elif has_image_suffix(name):
                    images.append((name, place))
                elif os.path.basename(name).partition(".")[2] == "cls":
                    raw.seek(place[2])
                    numbers[_sample(name)] = _label(raw.read(place[1]))
                else:
                    others.append(name)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(
            f"{printable(path)} can't be read as a shard ({error}): replace or remove it"
        ) from error
    names = [name for name, _ in images]
    return _Part(
        names,
        np.array([place for _, place in images], PLACE),
        np.array([numbers.get(_sample(name), _NO_LABEL) for name in names], np.int32),
        Paths.pack(others),
    )


def _members(raw: BinaryIO, shard: int) -> Iterator[tuple[str, _Place | None]]:
    """Yield each file that is not hidden, with its place; None if it is not a plain file.

    A hard link has the place of its target.

    Raises:
      ValueError: a name occurs twice or contains a zero byte, or the shard is truncated.
    """
    places: dict[str, _Place | None] = {}
    with tarfile.open(fileobj=raw, mode="r:", tarinfo=_Member) as tar:
        for member in tar:
            assert isinstance(member, _Member)
            tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
            name = os.path.normpath(member.name).lstrip("/")
            if member.isdir():
                continue
            place: _Place | None = None
            if member.isreg() and not member.issparse():
                place = (shard, member.size, member.offset_data, member.crc)
            elif member.islnk():  # another name of an earlier member
                place = places.get(os.path.normpath(member.linkname).lstrip("/"))
            hidden = any(map(is_hidden, name.split("/")))
            if name in places and not hidden:
                raise ValueError(f"{name} is in it twice")
            if "\0" in name:
                raise ValueError("a name contains a zero byte")
            places[name] = place
            if not hidden:
                yield name, place
        _check_end(raw, tar.offset)


def _check_end(raw: BinaryIO, end: int) -> None:
    """Raise `ValueError` for a truncated shard; tarfile accepts one that ends within a header."""
    raw.seek(end)
    rest = raw.read(_MOST_PADDING + 1)
    if not BLOCK <= len(rest) <= _MOST_PADDING or any(rest):
        raise ValueError("unexpected end of data")


def _sample(name: str) -> str:
    """The key of a member's sample: its path up to the first dot of the file name."""
    folder, base = os.path.split(name)
    return f"{folder}/{base.partition('.')[0]}"


def _label(text: bytes) -> int:
    """The number in a .cls member."""
    digits = text.decode("ascii").strip()
    if not digits.isdecimal() or int(digits) >= 2**31:
        raise ValueError(f"{digits!r} is not a label")
    return int(digits)

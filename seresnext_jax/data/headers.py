"""Reads from an image's header what DALI needs to know before it decodes the image."""

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seresnext_jax.data.formats import dali_decodes
from seresnext_jax.data.images import (
    MAX_PIXELS,
    BadImage,
    Member,
    Source,
    check_pixels,
    open_rgb,
    opened,
    refusal,
)
from seresnext_jax.data.pixels import orientation

FACTS = np.dtype(
    [
        *(("height", np.int32), ("width", np.int32), ("flags", np.uint8), ("turn", np.uint8)),
        *(("mtime_ns", np.int64), ("length", np.int64)),
    ]
)
"""The facts about one image: its size in pixels as stored, its flags, its EXIF orientation, and the
state of its file when the header was read (in a shard: of the file that pack.py packed, or 0)."""

KNOWN, AS_PILLOW, XMP, JPEG, WHOLE, TURN_KNOWN = 1, 2, 4, 8, 16, 32
"""Flags: the header was read; DALI decodes the image to Pillow's pixels; it has XMP data, in which
Pillow finds an orientation too; it is a JPEG; it is not truncated; `turn` was read."""

_HEAD = 4096
"""Bytes at the start of a file that are read; they contain the size of most JPEGs."""
_FRAMES = (0xC0, 0xC1, 0xC2)
"""JPEG markers before an image's size: baseline, extended and progressive."""
_APP1 = 0xE1
"""JPEG marker before EXIF or XMP data."""
_SEGMENTS = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""JPEG markers before tables, the restart interval, comments and application data."""
_JPEG_FORMATS = ("JPEG", "MPO")
"""Pillow's names; MPO is several JPEGs in one file."""
_JPEG_END = b"\xff\xd9"
_TAIL = 512
"""Bytes at the end of a file that are searched for `_JPEG_END`."""

UNKNOWN = (0,) * len(FACTS.names or ())
"""The `FACTS` of an image whose header was not read."""


class FileState(NamedTuple):
    """The mtime and length of a file, which change when it is written."""

    mtime_ns: int
    length: int


def file_state(path: str) -> FileState:
    """The state of a file now.

    Raises:
      BadImage: it is missing or not a regular file.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise refusal(error) from error
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait forever
        raise BadImage("not a file")
    return FileState(found.st_mtime_ns, found.st_size)


def are_unchanged(paths: Sequence[bytes], facts: np.ndarray) -> np.ndarray:
    """(R,) bool: whether the files have the mtime and length in their `FACTS`, `facts` (R,)."""
    now = np.array(list(map(_mtime_and_length, paths)), np.int64).reshape(-1, 2)
    return (now[:, 0] == facts["mtime_ns"]) & (now[:, 1] == facts["length"])


def _mtime_and_length(path: bytes) -> tuple[int, int]:
    """Of a file; if it is missing, numbers that no file has."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_mtime_ns, found.st_size


def jpeg_facts(paths: Sequence[bytes], *, with_end: bool) -> np.ndarray:
    """(R,) `FACTS` of those files that are ordinary JPEGs; zeros for the others.

    Each file is opened once; this takes half the time of `file_state` and `read_header`.

    Args:
      with_end: also look for the end-of-image marker of each JPEG, and set `WHOLE` if it is there.
    """
    facts = [_jpeg_facts(path, with_end) for path in paths]
    return np.array(facts, FACTS)


def _jpeg_facts(path: bytes, with_end: bool) -> tuple[int, ...]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait forever
    except OSError:
        return UNKNOWN
    try:
        state = os.fstat(file)
        found = parse_jpeg(os.read(file, _HEAD)) if stat.S_ISREG(state.st_mode) else None
        if found is None:
            return UNKNOWN
        height, width, flags, turn = found
        if height * width > MAX_PIXELS:
            return UNKNOWN
        if with_end and _ends(os.pread(file, _TAIL, max(0, state.st_size - _TAIL))):
            flags |= WHOLE
        return height, width, flags, turn, state.st_mtime_ns, state.st_size
    except OSError:
        return UNKNOWN
    finally:
        os.close(file)


def read_header(
    source: Source, *, with_turn: bool, with_end: bool = False
) -> tuple[int, int, int, int]:
    """Height, width, flags and turn (EXIF orientation) of an image; only its header is read.

    Args:
      with_turn: also read the EXIF orientation; if False, it may be left unknown.
      with_end: also refuse a truncated JPEG, and set `WHOLE` for the others. One without the
        end-of-image marker is decoded: Pillow decides, as in the backends that use it.

    Raises:
      BadImage: the file can't be read, has no header of a supported image, has more than
        `MAX_PIXELS`, or is truncated.
    """
    height, width, flags, turn = _read_header(source, with_turn)
    check_pixels(height, width)
    if with_end and flags & JPEG:
        if not has_jpeg_end(source):
            open_rgb(source)
        flags |= WHOLE
    return height, width, flags, turn


def _read_header(source: Source, with_turn: bool) -> tuple[int, int, int, int]:
    try:
        found = parse_jpeg(_head(source))
    except OSError as error:
        raise refusal(error) from error
    if found is not None and (found[2] & TURN_KNOWN or not with_turn):
        return found
    with opened(source) as image:
        flags = KNOWN | TURN_KNOWN
        flags |= AS_PILLOW * dali_decodes(image)
        turn = orientation(image)
        flags |= XMP * any("xmp" in str(key).lower() for key in image.info)
        flags |= JPEG * (image.format in _JPEG_FORMATS)
        return image.height, image.width, flags, turn


def _head(source: Source) -> bytes:
    if isinstance(source, Member):
        return source.data[:_HEAD]
    file = os.open(source, os.O_RDONLY)  # a file object takes twice as long
    try:
        return os.read(file, _HEAD)
    finally:
        os.close(file)


def parse_jpeg(head: bytes) -> tuple[int, int, int, int] | None:
    """Height, width, flags and turn from the first bytes of an ordinary JPEG; None: ask Pillow.

    This takes a tenth of Pillow's time. The size follows the marker of the frame (ITU-T T.81,
    B.2.2); before it are segments, each with its length.
    """
    if not head.startswith(b"\xff\xd8"):
        return None
    flags = KNOWN | AS_PILLOW | JPEG | TURN_KNOWN
    at = 2
    while at + 10 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if marker in _FRAMES:
            bits, layers = head[at + 4], head[at + 9]
            height, width = head[at + 5] << 8 | head[at + 6], head[at + 7] << 8 | head[at + 8]
            usual = bits == 8 and layers in (1, 3, 4) and height and width
            return (height, width, flags, 1) if usual else None
        if marker == _APP1:
            flags &= ~TURN_KNOWN
        elif marker not in _SEGMENTS:
            return None
        at += 2 + (head[at + 2] << 8 | head[at + 3])
    return None


def has_jpeg_end(source: Source) -> bool:
    """Whether a file ends with a JPEG's end-of-image marker, possibly followed by zeros.

    Raises:
      BadImage: it can't be read.
    """
    if isinstance(source, Member):
        tail = source.data[-_TAIL:]
    else:
        try:
            with open(source, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                tail = file.read()
        except OSError as error:
            raise refusal(error) from error
    return _ends(tail)


def _ends(tail: bytes) -> bool:
    return tail.rstrip(b"\0").endswith(_JPEG_END)

"""Opens one image file with Pillow as RGB, or refuses it with the cause."""

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Condition
from typing import NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError

from seresnext_jax.data.formats import (
    HEAD,
    first_bytes,
    is_broken_link,
    readable_formats,
    unreadable_kind,
)
from seresnext_jax.data.pixels import orientation, to_rgb, turned
from seresnext_jax.errors import UserError

T = TypeVar("T")

MAX_PIXELS = 2**27
"""Larger images, before or after resizing, count as bad: they could exhaust the memory."""
PIXELS_AT_ONCE = 2 * MAX_PIXELS
"""Most pixels that the threads of a process decode with Pillow at the same time.

A decoded pixel takes 4 bytes, and converting, turning or cropping an image copies it. So decoding
takes at most 2 GiB in each process, or 3 GiB for 16-bit grey, with any number of workers.
"""


class BadImage(Exception):
    """A file that can't be decoded; the message is the cause, without the file's name."""

    @property
    def errno(self) -> int | None:
        """The `errno` of the system's error; None if the system reported none."""
        return getattr(self.__cause__, "errno", None)


class Member(NamedTuple):
    """A file that was read from an archive."""

    name: str
    data: bytes


Source = str | Path | Member
"""Where an image is read from: its path, or its bytes."""


def decode_rgb(source: Source, use: Callable[[Image.Image], T], *, upright: bool = False) -> T:
    """Decode an image of any kind as RGB, and return what `use` returns for it.

    Waits while other threads are decoding too many pixels; see `PIXELS_AT_ONCE`.

    Args:
      upright: apply the EXIF orientation of a photo.

    Raises:
      BadImage: the file is missing, unreadable, damaged, not an image, or larger than MAX_PIXELS.
      UserError: too many files are open.
    """
    with ExitStack() as memory:
        with opened(source) as image:
            memory.enter_context(_memory.reserved(image.width * image.height))
            turn = orientation(image) if upright else 1
            rgb = turned(to_rgb(image), turn)
        return use(rgb)


def open_rgb(source: Source) -> Image.Image:
    """Like `decode_rgb`, but returns the RGB image; its EXIF orientation is not applied."""
    return decode_rgb(source, lambda image: image)


@contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
    """Open an image without reading its pixels; an error in the block becomes `BadImage`.

    `MemoryError` passes through, and too many open files are a `UserError`.
    """
    Image.MAX_IMAGE_PIXELS = None  # `check_pixels` has our limit
    try:
        with Image.open(_file(source), formats=readable_formats()) as image:
            check_pixels(image.height, image.width)
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(_not_an_image(source)) from error
    except MemoryError:  # not the image's fault
        raise
    except OSError as error:
        raise refusal(error) from error
    except Exception as error:  # for damaged files decoders raise nearly anything
        raise BadImage(str(error) or type(error).__name__) from error


def refusal(error: OSError) -> BadImage | UserError:
    """The error to raise for a file that the system refuses to read."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return UserError(f"{error.strerror}: raise the limit (ulimit -n), or lower --data.workers")
    return BadImage(error.strerror or str(error))


def _file(source: Source) -> str | Path | io.BytesIO:
    if isinstance(source, Member):
        return io.BytesIO(source.data)
    if not stat.S_ISREG(os.stat(source).st_mode):  # opening a pipe would wait forever
        raise BadImage("not a file")
    return source


def _not_an_image(source: Source) -> str:
    if isinstance(source, Member):
        kind = unreadable_kind(source.name, source.data[:HEAD])
    else:
        kind = unreadable_kind(os.fspath(source), first_bytes(os.fspath(source)))
    if kind is None:
        return "not an image in a known format"
    return f"its format ({kind}) is not supported: convert it to JPEG or PNG"


def is_meant_as_image(path: str) -> bool:
    """Whether a file seems to be an image although its suffix is not that of a readable format.

    True if its content is an image, its suffix is that of an unsupported image format, or it is a
    broken link.
    """
    if is_broken_link(path) or unreadable_kind(path, first_bytes(path)):
        return True
    try:
        with opened(path):
            return True
    except BadImage:
        return False


def check_pixels(height: int, width: int) -> None:
    """Raise `BadImage` for an image with more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels are more than {MAX_PIXELS}")


class _PixelBudget:
    """Limits the pixels that threads decode at the same time, so that they fit in memory."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._changed = Condition()

    @contextmanager
    def reserved(self, pixels: int) -> Iterator[None]:
        """Wait until `pixels` are free, and reserve them for the duration of the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_memory = _PixelBudget(PIXELS_AT_ONCE)

"""One image file: opened with Pillow as RGB, or refused with the cause."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 2**26
"""Images with more pixels, as they are or resized, count as bad: they could exhaust the memory."""


class BadImage(Exception):
    """A file that can't be decoded; the message is the cause, without the file's name."""


def open_rgb(path: str | Path) -> Image.Image:
    """Read an image of any kind as RGB: alpha is dropped, 16-bit grey is scaled to 8 bits.

    As in the original, the EXIF orientation of a photo is not applied.

    Raises:
      BadImage: the file is missing, unreadable, damaged, not an image, or beyond MAX_PIXELS.
    """
    with opened(path) as image:
        check_pixels(image.height, image.width)
        if image.mode.startswith("I;16"):  # convert("RGB") would clip at 255
            grey = (np.asarray(image).astype(np.float64) / 257 + 0.5).astype(np.uint8)
            return Image.fromarray(grey).convert("RGB")
        return image.convert("RGB")


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """The image at `path`, its pixels not read yet; every error inside becomes `BadImage`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise BadImage("not a file")
        with Image.open(path) as image:
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image in a known format") from error
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error
    except Exception as error:  # On damaged files the decoders raise nearly anything.
        raise BadImage(str(error) or type(error).__name__) from error


def check_pixels(height: int, width: int) -> None:
    """Raise `BadImage` for an image with more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels are more than {MAX_PIXELS}")

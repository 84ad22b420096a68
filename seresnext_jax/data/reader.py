"""Reads the images of a split one by one, and applies the policy for bad files."""

import math
import os
from collections.abc import Callable, Iterable
from functools import partial
from threading import Lock
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from seresnext_jax.data.files import FileList
from seresnext_jax.data.formats import dali_decodes
from seresnext_jax.data.gone import folder_was_away
from seresnext_jax.data.images import BadImage, check_pixels, decode_rgb, open_rgb, opened
from seresnext_jax.data.pixels import orientation, swaps_sides
from seresnext_jax.data.sampler import Rows
from seresnext_jax.data.transform import CentreCrop, TrainCrop
from seresnext_jax.errors import UserError, printable

T = TypeVar("T")

MAX_DALI_PIXELS = 2**25
"""Pillow decodes larger images: DALI keeps a whole batch in memory, at 3 bytes per pixel."""

_JPEG_FORMATS = ("JPEG", "MPO")
"""Pillow's names; MPO is several JPEGs in one file."""
_JPEG_END = b"\xff\xd9"
_TAIL = 512
"""Bytes at the end of a file that are searched for `_JPEG_END`."""


class ImageReader:
    """Reads single images of a split and applies the policy for bad files; thread-safe."""

    def __init__(
        self,
        files: FileList,
        crop: TrainCrop | CentreCrop,
        on_bad_image: Literal["error", "skip"],
        *,
        find_truncated: bool = False,
        upright: bool = False,
    ) -> None:
        """Create a reader.

        Args:
          find_truncated: `sizes` also refuses truncated JPEGs, for a decoder that accepts them.
          upright: apply the EXIF orientation.
        """
        self.files = files
        self.crop = crop
        self.upright = upright
        self.bad_files: list[str] = []
        self._bad: set[str] = set()
        self._on_bad_image = on_bad_image
        self._find_truncated = find_truncated
        self._lock = Lock()
        # Headers are read once; an image that can't be read keeps the height 0.
        self._sizes = np.zeros((len(files.paths), 2), np.int32)
        self._for_dali = np.zeros(len(files.paths), bool)

    def image(self, index: int, *draws: np.ndarray) -> np.ndarray | None:
        """The cropped image `index`, (S, S, 3) uint8; None if it is left out.

        Args:
          draws: the random numbers that the crop takes, if any.

        Raises:
          UserError: the image can't be decoded, and the policy is ``error``; or its folder is gone.
        """
        path = self.path(index)
        cropped = partial(_crop, self.crop, draws)
        return self._try(index, lambda: decode_rgb(path, cropped, upright=self.upright))

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """(height, width) of images, from their headers.

        Args:
          index: (R,) int64 indices into the file list.

        Returns:
          (R, 2) int32; 0 for images that are left out.

        Raises:
          UserError: an image has no readable header or is truncated, and the policy is ``error``;
            or its folder is gone.
        """
        for i in index[self._sizes[index, 0] == 0].tolist():
            header = self._try(i, partial(self._header, self.path(i)))
            if header is not None:
                self._sizes[i], self._for_dali[i] = header
        return self._sizes[index]

    def for_dali(self, index: np.ndarray) -> np.ndarray:
        """Whether DALI decodes images as Pillow does: (R,) bool; call `sizes` first."""
        return self._for_dali[index]

    def _header(self, path: str) -> tuple[tuple[int, int], bool]:
        with opened(path) as image:
            height, width = image.height, image.width
            for_dali = dali_decodes(image)
            if self.upright:
                turn = orientation(image)
                if swaps_sides(turn):
                    height, width = width, height
                # Pillow finds an orientation in XMP data too.
                for_dali &= turn == 1 or not any("xmp" in str(key).lower() for key in image.info)
            is_jpeg = image.format in _JPEG_FORMATS
            suspect = self._find_truncated and is_jpeg and not _has_jpeg_end(path)
        largest = self.crop.largest(height, width)
        check_pixels(*largest)
        if suspect:
            open_rgb(path)  # Pillow decides, as in the other backends
        return (height, width), for_dali and math.prod(largest) <= MAX_DALI_PIXELS

    def path(self, index: int) -> str:
        """The path of image `index`."""
        return os.path.join(self.files.folder, self.files.paths[index])

    def _try(self, index: int, read: Callable[[], T]) -> T | None:
        """Call `read` on an image and apply the policy; None if the image is left out."""
        path = self.path(index)
        while True:
            try:
                return read()
            except BadImage as cause:
                if not folder_was_away(os.path.dirname(path)):
                    self._refuse(path, cause)
                    return None

    def _refuse(self, path: str, cause: BadImage) -> None:
        if self._on_bad_image == "error":
            raise UserError(
                f"can't decode {printable(path)}: {printable(cause)}; replace or delete it, "
                "or leave such files out with --data.on-bad-image skip"
            ) from cause
        with self._lock:
            if path not in self._bad:
                self._bad.add(path)
                self.bad_files.append(path)

    def collect(
        self, rows: Rows, images: Iterable[np.ndarray | None]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stack a step's images: (R, S, S, 3) uint8, labels (R,) int32, mask (R,) bool.

        An image that was left out is black, and its mask False.
        """
        size = self.crop.image_size
        pixels = np.zeros((len(rows.index), size, size, 3), np.uint8)
        mask = rows.mask.copy()
        for row, image in enumerate(images):
            if image is None:
                mask[row] = False
            else:
                pixels[row] = image
        return pixels, self.files.labels[rows.index], mask


def _crop(
    crop: TrainCrop | CentreCrop, draws: tuple[np.ndarray, ...], image: Image.Image
) -> np.ndarray:
    return crop(image, *draws)


def _has_jpeg_end(path: str) -> bool:
    """Whether a file ends with a JPEG's end-of-image marker, possibly followed by zeros."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read().rstrip(b"\0").endswith(_JPEG_END)

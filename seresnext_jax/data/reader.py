"""The images of a split one by one, and what becomes of those that can't be decoded."""

import os
from collections.abc import Iterable
from threading import Lock
from typing import Literal

import numpy as np

from seresnext_jax.data.files import FileList
from seresnext_jax.data.images import BadImage, open_rgb, opened
from seresnext_jax.data.sampler import Rows
from seresnext_jax.data.transform import CentreCrop, TrainCrop
from seresnext_jax.errors import UserError

_JPEG_FORMATS = ("JPEG", "MPO")
"""Pillow's names; MPO is several JPEGs in one file."""
_JPEG_END = b"\xff\xd9"
_TAIL = 512
"""Bytes at the end of a file that are searched for `_JPEG_END`."""


class ImageReader:
    """Reads single images of a split and applies the policy for bad files; safe in threads."""

    def __init__(
        self,
        files: FileList,
        crop: TrainCrop | CentreCrop,
        on_bad_image: Literal["error", "skip"],
        *,
        find_truncated: bool,
    ) -> None:
        """Create a reader.

        Args:
          find_truncated: `sizes` also refuses truncated JPEGs, for a decoder that accepts them.
        """
        self.files = files
        self.crop = crop
        self.bad_files: list[str] = []
        self._on_bad_image = on_bad_image
        self._find_truncated = find_truncated
        self._lock = Lock()
        # Headers are read once; no image is 0 pixels high, and one that can't be read stays so.
        self._sizes = np.zeros((len(files.paths), 2), np.int32)

    def image(self, index: int, *draws: np.ndarray) -> np.ndarray | None:
        """The cropped image `index`, (S, S, 3) uint8; None if it is left out.

        Args:
          draws: what the crop takes beside the image.

        Raises:
          UserError: it can't be decoded, and the policy is ``error``.
        """
        try:
            return self.crop(open_rgb(self.path(index)), *draws)
        except BadImage as cause:
            self._refuse(index, cause)
            return None

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """(height, width) of images, from their headers.

        Args:
          index: (R,) int64 into the file list.

        Returns:
          (R, 2) int32; 0 for those that are left out.

        Raises:
          UserError: one has no readable header or is truncated, and the policy is ``error``.
        """
        for i in index[self._sizes[index, 0] == 0].tolist():
            path = self.path(i)
            try:
                with opened(path) as image:
                    height, width = image.height, image.width
                    is_jpeg = image.format in _JPEG_FORMATS
                    suspect = self._find_truncated and is_jpeg and not _has_jpeg_end(path)
                self.crop.check_size(height, width)
                if suspect:
                    open_rgb(path)  # Pillow decides, as in the other backends
            except BadImage as cause:
                self._refuse(i, cause)
            else:
                self._sizes[i] = height, width
        return self._sizes[index]

    def path(self, index: int) -> str:
        """The path of image `index`."""
        return os.path.join(self.files.folder, self.files.paths[index])

    def _refuse(self, index: int, cause: BadImage) -> None:
        path = self.path(index)
        if self._on_bad_image == "error":
            raise UserError(
                f"can't decode {path}: {cause}; replace or delete it, "
                "or leave such files out with --data.on-bad-image skip"
            ) from cause
        with self._lock:
            if path not in self.bad_files:
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


def _has_jpeg_end(path: str) -> bool:
    """Whether a file ends with a JPEG's end-of-image marker, or with that and zeros."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read().rstrip(b"\0").endswith(_JPEG_END)

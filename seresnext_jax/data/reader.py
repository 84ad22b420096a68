"""Reads the images of a split one by one, and applies the policy for bad files."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from threading import Lock
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from seresnext_jax.data.gone import UNREACHABLE, WORTH_A_RETRY, DataGone, folder_was_away
from seresnext_jax.data.headers import (
    AS_PILLOW,
    JPEG,
    KNOWN,
    TURN_KNOWN,
    WHOLE,
    XMP,
    FileState,
    are_unchanged,
    file_state,
    jpeg_facts,
    read_header,
)
from seresnext_jax.data.images import (
    MAX_PIXELS,
    BadImage,
    Member,
    check_pixels,
    decode_rgb,
)
from seresnext_jax.data.index import SplitIndex
from seresnext_jax.data.pixels import SWAPPING
from seresnext_jax.data.sampler import Rows
from seresnext_jax.data.transform import CentreCrop, TrainCrop
from seresnext_jax.errors import UserError, printable

T = TypeVar("T")

MAX_DALI_PIXELS = 2**25
"""Pillow decodes larger images: DALI keeps a whole batch in memory, at 3 bytes per pixel."""
MAX_READ_ERRORS = 10
"""More read errors than this mean that the disk fails, not that images are damaged."""
_IN_A_SHARD = FileState(0, 0)


class Headers(NamedTuple):
    """The facts about R images that DALI needs."""

    sizes: np.ndarray
    """(R, 2) int32, height and width in pixels of the image to crop (turned if the reader turns
    images upright); 0 for images that are left out."""
    for_dali: np.ndarray
    """(R,) bool; False where Pillow must decode: DALI's pixels would differ, or the image has more
    than `MAX_DALI_PIXELS`."""


class ImageReader:
    """Reads single images of a split and applies the policy for bad files; thread-safe."""

    def __init__(
        self,
        index: SplitIndex,
        crop: TrainCrop | CentreCrop,
        on_bad_image: Literal["error", "skip"],
        *,
        find_truncated: bool = False,
        upright: bool = False,
    ) -> None:
        """Create a reader.

        Args:
          find_truncated: `check` also refuses truncated JPEGs, for a decoder that accepts them.
          upright: apply the EXIF orientation.
        """
        self.files = index.files
        self.crop = crop
        self.upright = upright
        self.bad_files: list[str] = []
        self._index = index
        self._facts = index.facts
        self._bad = np.zeros(len(self.files.paths), bool)
        self._on_bad_image = on_bad_image
        self._find_truncated = find_truncated
        self._needed = KNOWN | TURN_KNOWN * upright
        self._lock = Lock()
        self._read_errors = 0
        self._checked = np.zeros(len(self.files.paths), bool)
        if self.files.in_shards:  # `ShardList.read` notices a changed shard
            self._checked[:] = self._is_complete(self._facts["flags"])

    # ---- pixels --------------------------------------------------------------------------------

    def image(self, index: int, *draws: np.ndarray) -> np.ndarray | None:
        """The cropped image `index`, (S, S, 3) uint8; None if it is left out.

        Args:
          draws: in training the crop's random numbers, (DRAWS,) float64; in evaluation nothing.

        Raises:
          UserError: the image can't be decoded, and the policy is ``error``; or its shard has
            changed.
          DataGone: its folder has disappeared, or the disk fails.
        """
        if self._bad[index]:
            return None
        cropped = partial(_crop, self.crop, draws)
        source = self.files.source
        return self._try(index, lambda: decode_rgb(source(index), cropped, upright=self.upright))

    def collect(
        self, rows: Rows, images: Iterable[np.ndarray | None]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stack a step's images: (R, S, S, 3) uint8, labels (R,) int32, mask (R,) bool.

        An image that was left out (None) is black, and its mask is False.
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

    # ---- headers -------------------------------------------------------------------------------

    def unchecked(self, index: np.ndarray) -> np.ndarray:
        """The given images that `check` has not checked in this run."""
        return index[~self._checked[index]]

    def check(self, index: np.ndarray) -> None:
        """Read the headers of those images that are not in the index or whose files have changed.

        Args:
          index: (R,) int64 indices into the file list.

        Raises:
          UserError: an image has no readable header or is truncated, and the policy is ``error``.
          DataGone: its folder has disappeared, or the disk fails.
        """
        outdated = self._outdated(index)
        if not self.files.in_shards:
            outdated = self._check_jpegs(outdated)
        for i in outdated.tolist():
            self._try(i, partial(self._check, i))
        self._checked[index] = True

    def headers(self, index: np.ndarray) -> Headers:
        """The sizes of images, and which of them DALI decodes; call `check` first.

        Args:
          index: (R,) int64 indices into the file list.

        Raises:
          UserError: an image is too large, as stored or resized, and the policy is ``error``.
        """
        facts = self._facts[index]
        sizes = np.stack([facts["height"], facts["width"]], axis=1)
        for_dali = facts["flags"] & AS_PILLOW != 0
        if self.upright:
            swapped = np.isin(facts["turn"], SWAPPING)[:, None]
            sizes = np.where(swapped, sizes[:, ::-1], sizes)
            # Pillow finds an orientation in XMP data too.
            for_dali &= (facts["turn"] == 1) | (facts["flags"] & XMP == 0)
        good = ~self._bad[index] & (facts["flags"] & KNOWN != 0)
        largest = self.crop.largest(np.where(good[:, None], sizes, 1).astype(np.int64))
        pixels: np.ndarray = largest.prod(axis=1)
        for row in np.flatnonzero(pixels > MAX_PIXELS).tolist():
            self._try(int(index[row]), partial(check_pixels, *largest[row].tolist()))
            good[row] = False
        return Headers(np.where(good[:, None], sizes, 0), for_dali & (pixels <= MAX_DALI_PIXELS))

    def keep(self) -> None:
        """Write the facts from the headers that were read to the index, for the next start."""
        self._index.keep()

    def _outdated(self, index: np.ndarray) -> np.ndarray:
        """The given images whose headers are unknown or whose files have changed."""
        facts = self._facts[index]
        known = self._is_complete(facts["flags"])
        if self.files.in_shards or not known.any():
            return index[~known]
        known[known] = are_unchanged(self.files.os_paths(index[known]), facts[known])
        return index[~known]

    def _check_jpegs(self, index: np.ndarray) -> np.ndarray:
        """Read the headers of ordinary JPEGs; returns the images that are something else."""
        facts = jpeg_facts(self.files.os_paths(index), with_end=self._find_truncated)
        done = self._is_complete(facts["flags"])
        if done.any():
            self._facts[index[done]] = facts[done]
            self._index.changed = True
        return index[~done]

    def _check(self, i: int) -> None:
        """Read and check the header of image `i`, and keep its facts.

        Raises:
          BadImage: it can't be read.
        """
        source = self.files.source(i)
        state = _IN_A_SHARD if isinstance(source, Member) else file_state(str(source))
        header = read_header(source, with_turn=self.upright, with_end=self._find_truncated)
        self._facts[i] = (*header, *state)
        self._index.changed = True

    def _is_complete(self, flags: Any) -> Any:
        """Whether `flags`, an integer or an array, contain everything that this reader needs."""
        needed = self._needed | WHOLE * (self._find_truncated & (flags & JPEG != 0))
        return flags & needed == needed

    # ---- bad files -----------------------------------------------------------------------------

    def _try(self, index: int, read: Callable[[], T]) -> T | None:
        """Call `read` for image `index`, and apply the policy if it fails.

        Calls `read` again if the folder had disappeared for a moment, and once more after a disk
        error.

        Returns:
          what `read` returns; None if the image is left out.
        """
        retried = False
        while True:
            try:
                return read()
            except BadImage as cause:
                if folder_was_away(os.path.dirname(self.files.file_of(index))):
                    continue
                if cause.errno in WORTH_A_RETRY and not retried:
                    retried = True
                    continue
                self._refuse(index, cause)
                return None

    def _refuse(self, index: int, cause: BadImage) -> None:
        path = self.files.path(index)
        if cause.errno in WORTH_A_RETRY:
            self._check_disk(path, cause)
        if self._on_bad_image == "error":
            raise UserError(
                f"can't decode {printable(path)}: {printable(cause)}; {self.files.fix_for_bad}, or "
                "leave such files out with --data.on-bad-image skip"
            ) from cause
        with self._lock:
            if not self._bad[index]:
                self._bad[index] = True
                self.bad_files.append(path)

    def _check_disk(self, path: str, cause: BadImage) -> None:
        """Count a read error; raise `DataGone` if the whole disk fails and not only one file."""
        with self._lock:
            self._read_errors += 1
        if cause.errno in UNREACHABLE or self._read_errors > MAX_READ_ERRORS:
            raise DataGone(
                f"can't read {printable(path)}: {printable(cause)}; check the disk or the network, "
                "make it available and start the program again"
            ) from cause


def _crop(
    crop: TrainCrop | CentreCrop, draws: tuple[np.ndarray, ...], image: Image.Image
) -> np.ndarray:
    return crop(image, *draws)

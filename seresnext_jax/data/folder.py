"""Folders of images read with Pillow: runs anywhere, and is the written form of the transforms.

The DALI backends are tested against this file. As in the original, the EXIF orientation of a photo
is not applied.
"""

import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from jax.sharding import Mesh
from PIL import Image, UnidentifiedImageError

from seresnext_jax.data.batch import Batch
from seresnext_jax.data.files import FileList
from seresnext_jax.data.place import place
from seresnext_jax.data.sampler import Rows, Sampler, eval_window, flips, random_crop
from seresnext_jax.errors import UserError

MAX_PIXELS = 2**26
"""Images with more pixels, as they are or resized, count as bad: they could exhaust the memory."""
_JPEG_FORMATS = ("JPEG", "MPO")
"""Pillow's names; MPO is several JPEGs in one file."""
_JPEG_END = b"\xff\xd9"
_TAIL = 512
"""Bytes at the end of a file that are searched for `_JPEG_END`."""


class BadImage(Exception):
    """A file that can't be decoded; the message is the cause, without the file's name."""


@dataclass(frozen=True)
class Transform:
    """From a decoded image to the square that the network sees."""

    split: Literal["train", "val"]
    image_size: int
    eval_margin: int
    crop_area: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: bool

    def __call__(self, image: Image.Image, draws: np.ndarray) -> np.ndarray:
        """Crop and resize (bilinear, antialiased): (S, S, 3) uint8 with S = image_size.

        Args:
          image: RGB.
          draws: (DRAWS,) float64 from `sampler.crop_draws`; not looked at in evaluation.

        Raises:
          BadImage: the resized image would have more than MAX_PIXELS.
        """
        return self._train(image, draws) if self.split == "train" else self._evaluate(image)

    def eval_window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """`sampler.eval_window` with this transform's sizes."""
        return eval_window(height, width, self.image_size + self.eval_margin, self.image_size)

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image that is too large, as it is or resized for evaluation.

        Raises:
          BadImage: it, or what it is resized to, has more than MAX_PIXELS.
        """
        _check_pixels(width, height)
        if self.split == "val":
            resized_h, resized_w, _, _ = self.eval_window(height, width)
            _check_pixels(resized_w, resized_h)

    def _train(self, image: Image.Image, draws: np.ndarray) -> np.ndarray:
        """Crop at random, resize, perhaps mirror."""
        top, left, height, width = random_crop(
            draws, image.height, image.width, self.crop_area, self.crop_ratio
        )
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR)
        if self.flip and flips(draws):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)

    def _evaluate(self, image: Image.Image) -> np.ndarray:
        """Resize the shorter side, crop the centre."""
        size = self.image_size
        self.check_size(image.height, image.width)
        height, width, top, left = self.eval_window(image.height, image.width)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image.crop((left, top, left + size, top + size)))


def open_rgb(path: str | Path) -> Image.Image:
    """Read an image of any kind as RGB: alpha is dropped, 16-bit grey is scaled to 8 bits.

    Raises:
      BadImage: the file is missing, unreadable, damaged, not an image, or beyond MAX_PIXELS.
    """
    with _opened(path) as image:
        _check_pixels(image.width, image.height)
        if image.mode.startswith("I;16"):  # convert("RGB") would clip at 255
            grey = (np.asarray(image).astype(np.float64) / 257 + 0.5).astype(np.uint8)
            return Image.fromarray(grey).convert("RGB")
        return image.convert("RGB")


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The image at `path`; everything that goes wrong inside becomes `BadImage`."""
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


def _check_pixels(width: int, height: int) -> None:
    """Raise `BadImage` for an image that is too large to handle."""
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels are more than {MAX_PIXELS}")


def _has_jpeg_end(path: str) -> bool:
    """Whether a file ends with a JPEG's end-of-image marker, or with that and zeros."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read().rstrip(b"\0").endswith(_JPEG_END)


class ImageReader:
    """Reads single images of a split and applies the policy for bad files; safe in threads."""

    def __init__(
        self,
        files: FileList,
        transform: Transform,
        on_bad_image: Literal["error", "skip"],
        *,
        find_truncated: bool,
    ) -> None:
        """Create a reader.

        Args:
          find_truncated: `sizes` also refuses truncated JPEGs, for a decoder that accepts them.
        """
        self.files = files
        self.transform = transform
        self.bad_files: list[str] = []
        self._on_bad_image = on_bad_image
        self._find_truncated = find_truncated
        self._lock = Lock()
        # Headers are read once; no image is 0 pixels high, and one that can't be read stays so.
        self._sizes = np.zeros((len(files.paths), 2), np.int32)

    def image(self, index: int, draws: np.ndarray) -> np.ndarray | None:
        """The transformed image `index`, (S, S, 3) uint8; None if it is left out.

        Raises:
          UserError: it can't be decoded, and the policy is ``error``.
        """
        try:
            return self.transform(open_rgb(self.path(index)), draws)
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
                with _opened(path) as image:
                    height, width = image.height, image.width
                    is_jpeg = image.format in _JPEG_FORMATS
                    suspect = self._find_truncated and is_jpeg and not _has_jpeg_end(path)
                self.transform.check_size(height, width)
                if suspect:
                    open_rgb(path)  # Pillow decides, as in the other backends
            except BadImage as cause:
                self._refuse(i, cause)
            else:
                self._sizes[i] = height, width
        return self._sizes[index]

    def path(self, index: int) -> str:
        """Where image `index` lies."""
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
        size = self.transform.image_size
        pixels = np.zeros((len(rows.index), size, size, 3), np.uint8)
        mask = rows.mask.copy()
        for row, image in enumerate(images):
            if image is None:
                mask[row] = False
            else:
                pixels[row] = image
        return pixels, self.files.labels[rows.index], mask


def pairs(rows: Rows) -> Iterator[tuple[int, np.ndarray]]:
    """The arguments of `ImageReader.image`, row by row."""
    return zip(rows.index.tolist(), rows.draws, strict=True)


def fingerprint(files: FileList, sampler: Sampler, transform: Transform) -> str:
    """SHA-256 of the files, their labels, the seed, the transform and the images per step."""
    facts = (transform, sampler.seed, sampler.images_per_step)
    digest = hashlib.sha256(repr(facts).encode())
    digest.update("\0".join(files.paths).encode(errors="surrogateescape"))
    digest.update(files.labels.tobytes())
    return digest.hexdigest()


class FolderLoader:
    """Loads a split with Pillow, in threads that decode some batches ahead; see `Loader`."""

    def __init__(
        self, reader: ImageReader, sampler: Sampler, mesh: Mesh, *, threads: int, prefetch: int
    ) -> None:
        self.num_images = sampler.num_images
        self.num_steps = sampler.num_steps
        self.class_names = reader.files.class_names
        self.fingerprint = fingerprint(reader.files, sampler, reader.transform)
        self.bad_files = reader.bad_files
        self._reader = reader
        self._sampler = sampler
        self._mesh = mesh
        self._prefetch = prefetch
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def batches(self, start: int) -> Iterator[Batch]:
        """See `Loader`.

        Raises:
          UserError: an image can't be decoded, and the policy is ``error``.
        """
        queue: deque[tuple[Rows, list[Future[np.ndarray | None]]]] = deque()
        try:
            for rows in self._sampler.rows(start):
                read = self._reader.image
                queue.append((rows, [self._pool.submit(read, *pair) for pair in pairs(rows)]))
                if len(queue) > self._prefetch:
                    batch = self._finish(*queue[0])
                    queue.popleft()
                    yield batch
            while queue:
                batch = self._finish(*queue[0])
                queue.popleft()
                yield batch
        finally:
            for _, images in queue:
                for image in images:
                    image.cancel()

    def close(self) -> None:
        """See `Loader`."""
        self._pool.shutdown(cancel_futures=True)

    def _finish(self, rows: Rows, images: list[Future[np.ndarray | None]]) -> Batch:
        """Wait for a step's images and place them."""
        arrays = self._reader.collect(rows, (image.result() for image in images))
        return place(self._mesh, self._sampler, *arrays)

"""Folders of images read with Pillow: runs anywhere, and is the written form of the transforms.

The DALI backends are tested against this file. As in the original, the EXIF orientation of a photo
is not applied.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from PIL import Image, UnidentifiedImageError

from seresnext_jax.config import DataConfig
from seresnext_jax.data.batch import Batch
from seresnext_jax.data.sampler import Rows, Steps, eval_geometry, is_flipped, random_crop
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import local_columns, put_batch

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif")
MAX_PIXELS = 2**26
"""Images with more pixels, as they are or resized, count as bad: they could exhaust the memory."""


class BadImage(Exception):
    """A file that can't be decoded; the message is the cause, without the file's name."""


@dataclass(frozen=True)
class FileList:
    """The images of one split."""

    split_dir: str
    paths: list[str]
    """Relative to `split_dir`, sorted within each class."""
    labels: np.ndarray
    """(number of paths,) int32, rank of the class folder."""
    class_names: tuple[str, ...]
    """Class folder names in label order."""

    def path(self, index: int) -> str:
        """The path of image `index`, openable from here."""
        return os.path.join(self.split_dir, self.paths[index])


def list_classes(split_dir: str) -> tuple[str, ...]:
    """The class folders of a split, sorted; hidden ones are ignored.

    Raises:
      UserError: the folder is missing or unreadable, or holds no class folder.
    """
    try:
        names = sorted(
            entry.name
            for entry in os.scandir(split_dir)
            if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise UserError(
            f"can't read the image folder {split_dir}: {error.strerror}; "
            "--data.root takes a folder that holds train/<class>/<image> and val/<class>/<image>"
        ) from error
    if not names:
        raise UserError(f"{split_dir} holds no class folders: sort its images into <class>/<image>")
    return tuple(names)


def scan_folder(split_dir: str | Path) -> FileList:
    """List the images of a split: every file below a class folder with one of `EXTENSIONS`.

    Raises:
      UserError: the folder is missing or has no class folders, or a class has no image.
    """
    split_dir = str(split_dir)
    class_names = list_classes(split_dir)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = _images_below(split_dir, name)
        if not found:
            raise UserError(
                f"class folder {os.path.join(split_dir, name)} holds no image "
                f"({' '.join(EXTENSIONS)}): add some or delete the folder"
            )
        paths += found
        labels += [label] * len(found)
    return FileList(split_dir, paths, np.array(labels, np.int32), class_names)


def _images_below(split_dir: str, class_name: str) -> list[str]:
    """The images of a class, relative to `split_dir`, sorted; hidden files are ignored."""

    def stop(error: OSError) -> None:
        raise UserError(f"can't read {error.filename}: {error.strerror}") from error

    found: list[str] = []
    top = os.path.join(split_dir, class_name)
    for folder, subfolders, names in os.walk(top, onerror=stop, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            os.path.relpath(os.path.join(folder, name), split_dir)
            for name in names
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found)


def check_split_classes(train: Sequence[str], val: Sequence[str], num_classes: int) -> None:
    """Check that both splits have the same class folders and that the model fits them.

    Raises:
      UserError: naming some of the classes that one split lacks, or the count that is right.
    """
    for here, there, split in ((train, val, "val"), (val, train, "train")):
        missing = sorted(set(here) - set(there))
        if missing:
            some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise UserError(
                f"{len(missing)} class folder(s) are missing in {split}: {some}; "
                "train and val need the same class folders"
            )
    if len(train) != num_classes:
        raise UserError(
            f"the dataset has {len(train)} classes, the model {num_classes}: "
            f"give --model.num-classes {len(train)}"
        )


def fingerprint(files: FileList, config: DataConfig, steps: Steps) -> str:
    """SHA-256 of all that decides what is in the batches; the order of arguments is part of it."""
    geometry = (config.image_size, config.eval_margin)
    crops = (config.crop_area, config.crop_ratio, config.flip)
    facts = (geometry, crops, steps.seed, steps.images_per_step, steps.train)
    digest = hashlib.sha256(repr(facts).encode())
    digest.update("\0".join(files.paths).encode(errors="surrogateescape"))
    digest.update(files.labels.tobytes())
    return digest.hexdigest()


def decode_rgb(path: str | Path) -> Image.Image:
    """Read an image of any kind as RGB: alpha is dropped, 16-bit grey is scaled to 8 bits.

    Raises:
      BadImage: the file is missing, unreadable, damaged, not an image, or larger than MAX_PIXELS.
    """
    try:
        with Image.open(path) as image:
            _check_pixels(image.width, image.height)
            if image.mode.startswith("I;16"):  # convert("RGB") would clip at 255
                grey = (np.asarray(image).astype(np.float64) / 257 + 0.5).astype(np.uint8)
                return Image.fromarray(grey).convert("RGB")
            return image.convert("RGB")
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


def train_image(path: str | Path, draws: np.ndarray, config: DataConfig) -> np.ndarray:
    """Decode, crop at random, resize (bilinear, antialiased), perhaps mirror.

    Args:
      path: of the image file.
      draws: (DRAWS,) float64, what `sampler.crop_draws` gave to this image.
      config: its sizes and ranges.

    Returns:
      (S, S, 3) uint8 with S = config.image_size.

    Raises:
      BadImage: as `decode_rgb`.
    """
    image = decode_rgb(path)
    top, left, height, width = random_crop(
        draws, image.height, image.width, config.crop_area, config.crop_ratio
    )
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((config.image_size,) * 2, Image.Resampling.BILINEAR)
    if config.flip and is_flipped(draws):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def eval_image(path: str | Path, config: DataConfig) -> np.ndarray:
    """Decode, resize the shorter side (bilinear, antialiased), crop the centre: (S, S, 3) uint8.

    Raises:
      BadImage: as `decode_rgb`.
    """
    image = decode_rgb(path)
    size = config.image_size
    height, width, top, left = eval_geometry(image.height, image.width, size, config.eval_margin)
    _check_pixels(width, height)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + size, top + size)))


class ImageReader:
    """Reads single images of a split and applies the policy for bad files; safe in threads."""

    def __init__(self, files: FileList, config: DataConfig, *, train: bool) -> None:
        self._files = files
        self._config = config
        self._train = train
        self._lock = Lock()
        self.bad_files: list[str] = []
        """Files left out so far, each once."""

    def read(self, index: int, draws: np.ndarray) -> np.ndarray | None:
        """The transformed image `index`, (S, S, 3) uint8; None if it is left out.

        Raises:
          UserError: it can't be decoded, and the policy is ``error``.
        """
        path = self._files.path(index)
        try:
            if self._train:
                return train_image(path, draws, self._config)
            return eval_image(path, self._config)
        except BadImage as cause:
            if self._config.on_bad_image == "error":
                raise UserError(
                    f"can't decode {path}: {cause}; replace or delete it, "
                    "or leave such files out with --data.on-bad-image skip"
                ) from cause
            with self._lock:
                if path not in self.bad_files:
                    self.bad_files.append(path)
            return None


class _Pending(NamedTuple):
    """A step whose images are being decoded."""

    rows: Rows
    images: list[Future[np.ndarray | None]]


class FolderLoader:
    """The Pillow backend: a pool of threads decodes some batches ahead (see `batch.Loader`)."""

    def __init__(self, files: FileList, config: DataConfig, steps: Steps, mesh: Mesh) -> None:
        self.num_images = steps.num_images
        self.num_steps = steps.num_steps
        self.class_names = files.class_names
        self.fingerprint = fingerprint(files, config, steps)
        self._reader = ImageReader(files, config, train=steps.train)
        self.bad_files = self._reader.bad_files
        self._labels = files.labels
        self._config = config
        self._steps = steps
        self._mesh = mesh
        self._columns = local_columns(mesh, steps.images_per_pass)
        self._pool = ThreadPoolExecutor(config.workers, thread_name_prefix="decode")

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield the batches from step `start` on.

        Raises:
          UserError: an image can't be decoded, and the policy is ``error``.
        """
        queue: deque[_Pending] = deque()
        try:
            for step in self._steps.numbers(start):
                queue.append(self._submit(step))
                if len(queue) > self._config.prefetch:
                    yield self._finish(queue[0])
                    queue.popleft()
            while queue:
                yield self._finish(queue[0])
                queue.popleft()
        finally:
            for pending in queue:
                for image in pending.images:
                    image.cancel()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, step: int) -> _Pending:
        """Start to decode this process's images of a step."""
        rows = self._steps.rows(step, self._columns)
        read = self._reader.read
        return _Pending(
            rows,
            [
                self._pool.submit(read, int(index), draws)
                for index, draws in zip(rows.index, rows.draws, strict=True)
            ],
        )

    def _finish(self, pending: _Pending) -> Batch:
        """Wait for the images of a step and place them on the devices."""
        size = self._config.image_size
        images = np.zeros((len(pending.images), size, size, 3), np.uint8)
        mask = pending.rows.real.copy()
        for row, future in enumerate(pending.images):
            image = future.result()
            if image is None:
                mask[row] = False
            else:
                images[row] = image
        passes = self._steps.passes
        labels = self._labels[pending.rows.index]
        return put_batch(
            self._mesh,
            images.reshape(passes, -1, size, size, 3),
            labels.reshape(passes, -1),
            mask.reshape(passes, -1),
        )

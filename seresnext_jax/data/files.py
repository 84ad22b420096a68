"""A split as a list of files: `root/<split>/<class>/.../<image>`, classes in sorted order."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seresnext_jax.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})


@dataclass(frozen=True)
class FileList:
    """The images of one split; M of them."""

    folder: Path
    paths: tuple[str, ...]
    """M paths below `folder`, sorted."""
    labels: np.ndarray
    """(M,) int32: the rank of the class folder's name."""
    class_names: tuple[str, ...]

    def fingerprint(self, facts: str) -> str:
        """SHA-256 of `facts`, the paths and the labels."""
        digest = hashlib.sha256(facts.encode())
        digest.update("\0".join(self.paths).encode(errors="surrogateescape"))
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def scan_folder(folder: Path, num_classes: int) -> FileList:
    """`list_images`, for a network of `num_classes` classes.

    Raises:
      UserError: as `list_images`, a class has no images, or there are more or fewer classes.
    """
    files = list_images(folder)
    for problem in class_problems(files, num_classes):
        raise UserError(problem)
    return files


def list_images(folder: Path) -> FileList:
    """List the images of a split. Hidden files and other extensions are left out.

    Raises:
      UserError: as `class_folders`, or a class can't be listed.
    """
    class_names = class_folders(folder)
    with _listing():
        members = [sorted(_images(folder / name)) for name in class_names]
    paths = tuple(os.path.relpath(path, folder) for found in members for path in found)
    labels = np.repeat(np.arange(len(members), dtype=np.int32), [len(found) for found in members])
    return FileList(folder, paths, labels, class_names)


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of a split's class folders, sorted.

    Raises:
      UserError: there is no such folder, no class folder in it, or it can't be listed.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: give --data.root a folder with train/<class>/<image> and "
            "val/<class>/<image>"
        )
    with _listing():
        entries = [e for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")]
    if not entries:
        raise UserError(
            f"{folder} has no class folders: sort its images into {folder.name}/<class>/<image>"
        )
    return tuple(sorted(entry.name for entry in entries))


@contextmanager
def _listing() -> Iterator[None]:
    """A folder that can't be listed becomes a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"can't list {error.filename}: {error.strerror}; make it readable or remove it"
        ) from error


def class_problems(files: FileList, num_classes: int) -> list[str]:
    """One line on each class folder without images, and one if their number is wrong."""
    counts = np.bincount(files.labels, minlength=len(files.class_names))
    problems = [
        f"class folder {files.folder / name} has no images: add images or remove the folder"
        for name, count in zip(files.class_names, counts, strict=True)
        if not count
    ]
    if len(counts) != num_classes:
        problems.append(
            f"{files.folder} has {len(counts)} class folders, but the network has {num_classes} "
            f"classes: train with --model.num-classes {len(counts)}, or fix the folder"
        )
    return problems


def _images(folder: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [
            os.path.join(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return found


def differing_classes(train: tuple[str, ...], val: tuple[str, ...]) -> list[str]:
    """One line on each split with class folders that the other one lacks.

    Their labels would mean different things.
    """
    return [
        f"{len(extra)} class folder(s) only in {name}/ ({', '.join(sorted(extra)[:3])}"
        f"{', ...' if len(extra) > 3 else ''}): train/ and val/ must have the same ones, so add "
        "or remove folders"
        for name, extra in (("train", set(train) - set(val)), ("val", set(val) - set(train)))
        if extra
    ]

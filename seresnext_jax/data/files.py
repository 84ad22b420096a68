"""A split as a list of files: `root/<split>/<class>/.../<image>`, classes in sorted order."""

import os
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


def scan_folder(folder: Path) -> FileList:
    """List the images of a split. Hidden files and other extensions are left out.

    Raises:
      UserError: there is no such folder, no class folder in it, no image in one of them, or one
        can't be listed.
    """
    files = list_images(folder)
    for problem in empty_classes(files):
        raise UserError(problem)
    return files


def list_images(folder: Path) -> FileList:
    """`scan_folder`, but a class may be without images.

    Raises:
      UserError: there is no such folder, no class folder in it, or one can't be listed.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: give --data.root a folder with train/<class>/<image> and "
            "val/<class>/<image>"
        )
    try:
        class_names = tuple(sorted(e.name for e in os.scandir(folder) if _is_class(e)))
        members = [sorted(_images(folder / name)) for name in class_names]
    except OSError as error:
        raise UserError(
            f"can't list {error.filename}: {error.strerror}; make it readable or remove it"
        ) from error
    if not class_names:
        raise UserError(
            f"{folder} holds no class folders: sort its images into {folder.name}/<class>/<image>"
        )
    paths = tuple(os.path.relpath(path, folder) for found in members for path in found)
    labels = np.repeat(np.arange(len(members), dtype=np.int32), [len(found) for found in members])
    return FileList(folder, paths, labels, class_names)


def empty_classes(files: FileList) -> list[str]:
    """One line on each class folder that holds no image."""
    counts = np.bincount(files.labels, minlength=len(files.class_names))
    return [
        f"class folder {files.folder / name} holds no image: add images or remove the folder"
        for name, count in zip(files.class_names, counts, strict=True)
        if not count
    ]


def _is_class(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


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


def check_classes(class_names: tuple[str, ...], num_classes: int, folder: Path) -> None:
    """Refuse a dataset that does not have one folder per class of the network.

    Raises:
      UserError: the counts differ.
    """
    if len(class_names) != num_classes:
        raise UserError(
            f"{folder} has {len(class_names)} class folders but --model.num-classes is "
            f"{num_classes}: give --model.num-classes {len(class_names)}, or mend the folder"
        )


def check_same_classes(train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """Refuse splits whose class folders differ: their labels would mean different things.

    Raises:
      UserError: naming some of the classes that only one split has.
    """
    for here, there, name in ((train, val, "train"), (val, train, "val")):
        if extra := sorted(set(here) - set(there)):
            raise UserError(
                f"{len(extra)} class folder(s) only in {name}/ ({', '.join(extra[:3])}"
                f"{', ...' if len(extra) > 3 else ''}): train/ and val/ must have the same ones"
            )

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
      UserError: there is no such folder, no class folder in it, or no image in one of them.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder: --data.root must hold train/<class>/<image> and "
            "val/<class>/<image>"
        )
    class_names = tuple(sorted(e.name for e in os.scandir(folder) if _is_class(e)))
    if not class_names:
        raise UserError(
            f"{folder} holds no class folders: sort its images into {folder.name}/<class>/<image>"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = sorted(_images(folder / name))
        if not found:
            raise UserError(
                f"class folder {folder / name} holds no image: add images or remove the folder"
            )
        paths += [os.path.relpath(path, folder) for path in found]
        labels += [label] * len(found)
    return FileList(folder, tuple(paths), np.array(labels, np.int32), class_names)


def _is_class(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _images(folder: Path) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
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

"""A split as a list of files: `root/<split>/<class>/.../<image>`, classes in sorted order."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seresnext_jax.data.formats import count_kinds, has_image_suffix, split_by_suffix
from seresnext_jax.data.walk import files_below, is_hidden, leads_back, listing
from seresnext_jax.errors import UserError, printable


@dataclass(frozen=True)
class FileList:
    """The images of one split; M of them."""

    folder: Path
    paths: tuple[str, ...]
    """M paths below `folder`, sorted."""
    labels: np.ndarray
    """(M,) int32: the rank of the class folder's name."""
    class_names: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Paths below `folder` of the files that are not listed: other suffixes, and images that are
    not in a class folder. Hidden files are not among them."""

    def count_left_out(self) -> str:
        """The files that are not listed, by suffix: ``.heic 12, no suffix 3``; empty if none."""
        loose = [path for path in self.left_out if has_image_suffix(path)]
        others = [os.path.join(self.folder, p) for p in self.left_out if not has_image_suffix(p)]
        counts = [count_kinds(others)] * bool(others)
        if loose:
            counts.append(f"{count_kinds(loose)} outside the class folders")
        return ", ".join(counts)

    def note_left_out(self) -> str:
        """The split and `count_left_out`; empty if nothing is left out."""
        counts = self.count_left_out()
        return f"{self.folder.name}/: {counts}" if counts else ""

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
    """List the images of a split: those with the suffix of a format that can be read.

    Symbolic links to files and folders are followed. Hidden files are left out.

    Raises:
      UserError: as `class_folders`, or a class can't be listed.
    """
    class_names, left_out = _entries(folder)
    members: list[list[str]] = []
    with listing():
        for name in class_names:
            images, others = split_by_suffix(files_below(folder / name))
            members.append(images)
            left_out += [os.path.relpath(path, folder) for path in others]
    paths = tuple(os.path.relpath(path, folder) for found in members for path in found)
    labels = np.repeat(np.arange(len(members), dtype=np.int32), [len(found) for found in members])
    return FileList(folder, paths, labels, class_names, tuple(left_out))


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of a split's class folders, sorted.

    Raises:
      UserError: there is no such folder, no class folder in it, or it can't be listed.
    """
    return _entries(folder)[0]


def _entries(folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """The names of a split's class folders and of what else is in it, sorted, without hidden ones.

    A link to a folder that contains the link is not a class folder.

    Raises: as `class_folders`.
    """
    if not folder.is_dir():
        raise UserError(
            f"{printable(folder)} is not a folder: give --data.root a folder with "
            "train/<class>/<image> and val/<class>/<image>"
        )
    classes: list[str] = []
    others: list[str] = []
    with listing():
        for entry in os.scandir(folder):
            if is_hidden(entry.name):
                continue
            is_class = entry.is_dir() and not (entry.is_symlink() and leads_back(entry.path))
            (classes if is_class else others).append(entry.name)
    if not classes:
        raise UserError(
            f"{printable(folder)} has no class folders: sort its images into "
            f"{printable(folder.name)}/<class>/<image>"
        )
    return tuple(sorted(classes)), sorted(others)


def class_problems(files: FileList, num_classes: int) -> list[str]:
    """One line on each class folder without images, and one if their number is wrong."""
    counts = np.bincount(files.labels, minlength=len(files.class_names))
    problems = [
        f"class folder {printable(files.folder / name)} has no images: add images or remove "
        "the folder"
        for name, count in zip(files.class_names, counts, strict=True)
        if not count
    ]
    if len(counts) != num_classes:
        problems.append(
            f"{printable(files.folder)} has {len(counts)} class folders, but the network has "
            f"{num_classes} classes: train with --model.num-classes {len(counts)}, or fix the "
            "folder"
        )
    return problems


def differing_classes(train: tuple[str, ...], val: tuple[str, ...]) -> list[str]:
    """One line on each split with class folders that the other one lacks.

    Their labels would mean different things.
    """
    return [
        f"{len(extra)} class folder(s) only in {name}/ ({printable(', '.join(sorted(extra)[:3]))}"
        f"{', ...' if len(extra) > 3 else ''}): train/ and val/ must have the same ones, so add "
        "or remove folders"
        for name, extra in (("train", set(train) - set(val)), ("val", set(val) - set(train)))
        if extra
    ]

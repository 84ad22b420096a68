"""A split as a list of files: `root/<split>/<class>/.../<image>`, classes in sorted order."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from seresnext_jax.data.class_names import listed
from seresnext_jax.data.formats import count_kinds, has_image_suffix, split_by_suffix
from seresnext_jax.data.walk import files_below, is_hidden, leads_back, listing
from seresnext_jax.errors import UserError, printable


@dataclass(frozen=True)
class FileList:
    """The M images of one split."""

    folder: Path
    paths: tuple[str, ...]
    """M paths below `folder`, sorted."""
    labels: np.ndarray
    """(M,) int32: the rank of the class folder's name."""
    class_names: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Paths below `folder` of the files that are not listed: those with other suffixes, and images
    outside the class folders. Hidden files are not included."""

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
    """List a training split for a network of `num_classes` classes.

    Raises:
      UserError: as `list_images`; or a class has no images, or the number of classes differs.
    """
    files = list_images(folder)
    for problem in class_problems(files, num_classes):
        raise UserError(problem)
    return files


def scan_val(folder: Path, num_classes: int, names: tuple[str, ...] | None) -> FileList:
    """List a validation split; a class may have no images.

    Args:
      num_classes: the number of the network's classes.
      names: the class names in label order, if they are known; a class then needs no folder.

    Raises:
      UserError: as `list_images`; or there are no images, or the folders' labels are unknown.
    """
    files = list_images(folder)
    if names is not None:
        files = _label_by_name(files, names)
    elif problem := wrong_number(files.class_names, folder, num_classes):
        fix = "give --class-names FILE with the names of all classes in the order of the labels"
        if len(files.class_names) > num_classes:
            fix = "remove the folders that are not classes, or name other weights"
        raise UserError(_nested(folder, num_classes) or f"{problem}: {fix}")
    if not files.paths:
        raise UserError(f"{folder} has no images in its class folders: add images")
    return files


def empty_classes(files: FileList) -> list[str]:
    """The names of the classes that have no images."""
    counts = np.bincount(files.labels, minlength=len(files.class_names))
    return [name for name, count in zip(files.class_names, counts, strict=True) if not count]


def _label_by_name(files: FileList, names: tuple[str, ...]) -> FileList:
    """The same images with the labels that `names` give to the class folders."""
    labels = {name: label for label, name in enumerate(names)}
    unknown = [name for name in files.class_names if name not in labels]
    if unknown:
        raise UserError(
            _nested(files.folder, len(names))
            or f"{files.folder} has class folders that are not classes of the weights "
            f"({listed(unknown)}; the classes are {listed(names)}): rename or remove them, or give "
            "--class-names FILE with the folders' names in the order of the labels"
        )
    twice = [name for name in files.class_names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"several classes are called {listed(twice)}: give --class-names FILE with a different "
            "name for each class"
        )
    new = np.array([labels[name] for name in files.class_names], np.int32)
    return replace(files, labels=new[files.labels], class_names=names)


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
      UserError: the folder is missing, has no class folders, or can't be listed.
    """
    return _entries(folder)[0]


def _entries(folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """The sorted names of a split's class folders and of its other entries, without hidden ones.

    A link to a folder that contains the link is not a class folder.

    Raises: as `class_folders`.
    """
    if not folder.is_dir():
        raise UserError(f"{printable(folder)} is not a folder: {_other_root(folder)}")
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


def _other_root(split: Path) -> str:
    """A suggestion for ``--data.root`` if the split is missing: a nearby folder that has it."""
    root = split.parent
    near = [root.parent, *(root / name for name in _folders(root))] if root.is_dir() else []
    for other in near:
        if all((other / name).is_dir() for name in ("train", "val")):
            return f"give --data.root {printable(other)}"
    found = ""
    if root.is_dir():
        found = f"; {printable(root)} has {listed(_folders(root)) or 'no folders'}"
    return "give --data.root a folder with train/<class>/<image> and val/<class>/<image>" + found


def _folders(folder: Path) -> tuple[str, ...]:
    """The sorted names of the folders in a folder; hidden ones are left out."""
    with listing():
        entries = [e for e in os.scandir(folder) if e.is_dir() and not is_hidden(e.name)]
    return tuple(sorted(entry.name for entry in entries))


def class_problems(files: FileList, num_classes: int) -> list[str]:
    """One line on each class folder without images, and one if their number is wrong."""
    problems = [
        f"class folder {printable(files.folder / name)} has no images: add images or remove "
        "the folder"
        for name in empty_classes(files)
    ]
    return problems + number_problems(files.class_names, files.folder, num_classes)


def number_problems(names: tuple[str, ...], folder: Path, num_classes: int) -> list[str]:
    """One line if a split for training has more or fewer classes than the network."""
    problem = wrong_number(names, folder, num_classes)
    if not problem:
        return []
    fix = f"train with --model.num-classes {len(names)}, or fix the folder"
    return [_nested(folder, num_classes) or f"{problem}: {fix}"]


def wrong_number(names: tuple[str, ...], folder: Path, num_classes: int) -> str:
    """What is wrong with the number of class folders; "" if nothing is."""
    if len(names) == num_classes:
        return ""
    folders = "1 class folder" if len(names) == 1 else f"{len(names)} class folders"
    return f"{printable(folder)} has {folders}, but the network has {num_classes} classes"


def _nested(folder: Path, num_classes: int) -> str:
    """A line on class folders that are one level too deep; "" if there are none."""
    outer = _folders(folder)
    inner = [(name, found) for name in outer for found in _folders(folder / name)]
    if len(inner) != num_classes and not (len(outer) == 1 and len(inner) > 1):
        return ""
    if any(has_image_suffix(name) for above in outer for name in os.listdir(folder / above)):
        return ""
    problem = wrong_number(outer, folder, num_classes)
    here = printable(folder)
    below = f"the folders in {listed(outer)} are {len(inner)} ({listed(n for _, n in inner)})"
    if len(outer) > 1:
        return f"{problem}; {below}: move them into {here}, and remove the empty folders"
    one = printable(folder / outer[0])
    return (
        f"{problem}; {below}: move them into {here} and remove {one}, or give --data.root a new "
        f"folder in which {folder.name} is a link to {one}, and the other split likewise"
    )


def differing_classes(train: tuple[str, ...], val: tuple[str, ...]) -> list[str]:
    """One line on each split with class folders that the other one lacks.

    Their labels would mean different things.
    """
    train_only, val_only = (
        [name for name in a if name not in set(b)] for a, b in ((train, val), (val, train))
    )
    problems = []
    if train_only:
        problems.append(
            f"{len(train_only)} class folder(s) only in train/ ({listed(train_only)}): train/ and "
            "val/ must have the same ones, so add them to val/ (they may be empty there) or remove "
            "them from train/"
        )
    if val_only:
        problems.append(
            f"{len(val_only)} class folder(s) only in val/ ({listed(val_only)}): train/ and val/ "
            "must have the same ones, so add them to train/ or remove them from val/"
        )
    return problems

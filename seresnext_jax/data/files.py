"""A split as a list of files: `root/<split>/<class>/.../<image>`, classes in sorted order."""

import gc
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from seresnext_jax.data.class_names import listed
from seresnext_jax.data.formats import count_kinds, has_image_suffix, split_by_suffix
from seresnext_jax.data.images import Source
from seresnext_jax.data.paths import Paths
from seresnext_jax.data.walk import (
    PlaceState,
    folders_below,
    is_hidden,
    leads_back,
    listing,
    place_state,
)
from seresnext_jax.errors import UserError, printable

Progress = Callable[[str], None]
"""Shows one line about the progress of a listing."""


@dataclass(frozen=True)
class FileList:
    """The M images of one split."""

    folder: Path
    paths: Paths
    """M paths relative to `folder`, sorted within each class, or with .cls in the shards' order."""
    labels: np.ndarray
    """(M,) int32 indices into `class_names`; without names, the numbers in .cls."""
    class_names: tuple[str, ...]
    """In label order; empty for shards with .cls."""
    left_out: Sequence[str] = ()
    """Paths, relative to `folder`, of the files that are not listed: those with other suffixes, and
    images outside the class folders. Hidden files are not included."""

    in_shards: ClassVar[bool] = False
    """Whether the images are members of tar files."""
    fix_for_bad: ClassVar[str] = "replace or delete it"
    """What to do about a bad image, for messages."""

    def path(self, index: int) -> str:
        """The path of image `index`."""
        return os.path.join(self.folder, self.paths[index])

    def os_paths(self, index: np.ndarray) -> list[bytes]:
        """The paths of the images `index`, (R,) int64, as bytes for the operating system."""
        rows = self.paths.rows(index, f"{self.folder}{os.sep}")
        return rows.view(f"S{rows.shape[1]}").ravel().tolist()

    def file_of(self, index: int) -> str:
        """The file on the disk that contains image `index`."""
        return self.path(index)

    def source(self, index: int) -> Source:
        """Where image `index` is read from."""
        return self.path(index)

    def num_bytes(self, index: int) -> int:
        """Size of image `index` in bytes; -1 if its file is missing."""
        try:
            return os.stat(self.path(index)).st_size
        except OSError:
            return -1

    def count_left_out(self) -> str:
        """The files that are not listed, by suffix: ``.heic 12, no suffix 3``; empty if none."""
        if self.in_shards:
            return count_kinds(self.left_out, on_disk=False)
        loose = [path for path in self.left_out if has_image_suffix(path)]
        others = [
            os.path.join(self.folder, path) for path in self.left_out if not has_image_suffix(path)
        ]
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
        digest.update(self.paths.packed[:-1].tobytes())  # without the last 0
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Listing:
    """A split's files, and the folders or shards in which they were found."""

    files: FileList
    places: dict[str, PlaceState]
    """The state of each listed folder or shard at that time, by its path relative to the split's
    folder."""


def list_folder(folder: Path, progress: Progress) -> Listing:
    """List the images of a split: those with the suffix of a format that can be read.

    Symbolic links to files and folders are followed. Hidden files are left out.

    Args:
      progress: called after each class.

    Raises:
      UserError: as `class_folders`, or a class can't be listed.
    """
    with listing():
        places = {"": place_state(folder)} if folder.is_dir() else {}
    class_names, left_out = _entries(folder)
    members: list[Paths] = []
    images = 0
    with listing(), _without_garbage_collection():
        for name in class_names:
            found: list[tuple[str, list[str]]] = []
            for below in folders_below(folder / name):
                above = os.path.relpath(below.path, folder)
                places[above] = below.state
                names, others = split_by_suffix(below.names)
                found.append((f"{above}/", names))
                left_out += [f"{above}/{name}" for name in others]
            members.append(_pack(found))
            images += len(members[-1])
            done = f"{images} images in {len(members)} of {len(class_names)} classes"
            progress(f"listing {printable(folder)}: {done}")
    sizes = [len(found) for found in members]
    labels = np.repeat(np.arange(len(members), dtype=np.int32), sizes)
    return Listing(FileList(folder, Paths.join(members), labels, class_names, left_out), places)


def _pack(folders: list[tuple[str, list[str]]]) -> Paths:
    """The sorted paths of a class, from its folders (each ending in /) and their sorted names."""
    if len(folders) == 1:  # as in ImageNet: no Python string for each path
        ((above, names),) = folders
        return Paths.pack(names, above)
    return Paths.pack(sorted(above + name for above, names in folders for name in names))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector: a million directory entries would trigger it again and again,
    and none of them is part of a reference cycle.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
    """What to give as ``--data.root`` if the split is missing: a nearby folder with both splits."""
    root = split.parent
    near = [root.parent, *(root / name for name in subfolders(root))] if root.is_dir() else []
    for other in near:
        if all((other / name).is_dir() for name in ("train", "val")):
            return f"give --data.root {printable(other)}"
    found = ""
    if root.is_dir():
        found = f"; {printable(root)} has {listed(subfolders(root)) or 'no folders'}"
    return "give --data.root a folder with train/<class>/<image> and val/<class>/<image>" + found


def subfolders(folder: Path) -> tuple[str, ...]:
    """The sorted names of the folders in a folder; hidden ones are left out."""
    with listing():
        entries = [e for e in os.scandir(folder) if e.is_dir() and not is_hidden(e.name)]
    return tuple(sorted(entry.name for entry in entries))

"""A split's list of files and the facts from their headers, kept in a file for the next start.

The list of files is used again if each folder, or shard, is unchanged since it was listed: same
inode, mtime and ctime. A folder that had changed less than `SETTLED` before the listing is listed
again, because a later change could have the same times. The facts about an image in a class folder
are used if the mtime and the length of its file are unchanged.
"""

import fcntl
import hashlib
import os
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seresnext_jax.data.files import FileList, Listing, Progress, list_folder
from seresnext_jax.data.formats import format_names, is_broken_link
from seresnext_jax.data.headers import FACTS
from seresnext_jax.data.paths import Paths
from seresnext_jax.data.shards import PLACE, ShardList, find_shards, index_beside
from seresnext_jax.data.tar_listing import list_shards
from seresnext_jax.data.walk import PlaceState, listing, place_state
from seresnext_jax.errors import UserError, printable
from seresnext_jax.output import replacing

SETTLED = 10 * 10**9
"""Nanoseconds for which a folder must have been unchanged before its listing is trusted."""
MIN_IMAGES = 10_000
"""Smaller splits are listed in less time than their index would save."""
_FORMAT = 1
_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise for a damaged file."""


@dataclass
class SplitIndex:
    """A split's files, and the facts from their headers."""

    files: FileList
    facts: np.ndarray
    """(M,) `FACTS`; flags 0 for an image whose header was not read."""
    listed: Listing
    """The files as they were listed; `files` may have other labels."""
    listed_ns: int
    """When the listing began, on this machine's clock, in nanoseconds."""
    file: Path | None
    """The file of this index; None: it is not kept."""
    changed: bool = False
    """Whether there are facts that are not in the file."""

    def keep(self) -> None:
        """Write new facts to the file, merged with what other processes have written since.

        Warns if the file can't be written.
        """
        if self.file is None or not self.changed:
            return
        self.changed = False
        try:
            with _alone(self.file):
                kept = _read(self.file, self.listed.files.folder)
                facts = self.facts.copy()
                if kept is not None and _same_files(kept.listed, self.listed):
                    unknown = facts["flags"] == 0
                    facts[unknown] = kept.facts[unknown]
                write_index(replace(self, facts=facts), self.file)
        except OSError as error:
            self.file = None
            warnings.warn(
                f"the index of the images can't be kept ({error}): the next start reads all "
                "headers again; give --data.index another folder, or '' for none",
                stacklevel=2,
            )


def open_index(folder: Path, kept_in: str, progress: Progress) -> SplitIndex:
    """A split's files: from the index, or listed now.

    Args:
      folder: with class folders, or with shards.
      kept_in: folder for the indexes; "": none.

    Raises:
      UserError: shards are missing that the index beside them lists, or `find_shards`,
        `list_folder` or `list_shards` raises it.
    """
    shards = find_shards(folder)
    beside = _read(index_beside(folder), folder) if shards else None
    if beside is not None:
        _check_missing(beside.files, shards)
        if _has_shards(beside.files, shards):
            return replace(beside, file=None)
    file = _file_for(folder, kept_in) if kept_in else None
    kept = _read(file, folder) if file else None
    if kept is not None and _shards_of(kept.files) == shards and _unchanged(kept):
        return kept
    now = time.time_ns()
    listed = list_shards(folder, progress) if shards else list_folder(folder, progress)
    number = len(listed.files.paths)
    if number < MIN_IMAGES or (not shards and _has_broken_links(listed.files)):
        file = None
    index = SplitIndex(listed.files, np.zeros(number, FACTS), listed, now, file)
    if kept is not None and _same_files(kept.listed, listed):
        index.facts = kept.facts
    index.changed = True
    index.keep()
    return index


def _file_for(folder: Path, kept_in: str) -> Path:
    """The file of a split's index: its name contains the split's name and a hash of its path."""
    path = os.fsencode(os.path.realpath(folder))
    name = f"{folder.name}-{hashlib.sha256(path).hexdigest()[:16]}.npz"
    return Path(os.path.expanduser(kept_in)) / name


# ---- is it still valid? ------------------------------------------------------------------------


def _unchanged(index: SplitIndex) -> bool:
    """Whether every folder or shard is unchanged since `SETTLED` before it was listed."""
    folder = index.listed.files.folder
    for place, state in index.listed.places.items():
        if max(state.mtime_ns, state.ctime_ns) > index.listed_ns - SETTLED:
            return False
        try:
            if place_state(folder / place) != state:
                return False
        except OSError:
            return False
    return True


def _shards_of(files: FileList) -> tuple[str, ...]:
    return files.shards if isinstance(files, ShardList) else ()


def _has_broken_links(files: FileList) -> bool:
    """Whether a link is broken: if its target appears later, no listed folder changes."""
    return any(is_broken_link(os.path.join(files.folder, path)) for path in files.left_out)


def _check_missing(files: FileList, shards: tuple[str, ...]) -> None:
    """Raise `UserError` for a copy that lacks shards, so that it is not used as a smaller split."""
    listed = _shards_of(files)
    missing = sorted(set(listed) - set(shards))
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(listed)} shards of {printable(files.folder)} are missing "
            f"(first: {printable(missing[0])}): copy them there, or remove "
            f"{printable(index_beside(files.folder))} to use the others alone"
        )


def _has_shards(files: FileList, shards: tuple[str, ...]) -> bool:
    """Whether the index beside shards has their names and lengths; copying changes their times.

    A shard of the same length with other contents is found when an image is read from it.
    """
    if not isinstance(files, ShardList) or files.shards != shards:
        return False
    with listing():
        return files.lengths == tuple((files.folder / name).stat().st_size for name in shards)


def _same_files(one: Listing, two: Listing) -> bool:
    """Whether two listings have the same files at the same positions."""
    if not np.array_equal(one.files.paths.packed, two.files.paths.packed):
        return False
    if isinstance(one.files, ShardList) and isinstance(two.files, ShardList):
        return np.array_equal(one.files.places, two.files.places)
    return type(one.files) is type(two.files)


# ---- the file ----------------------------------------------------------------------------------


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let only one process at a time add to an index; without locks, the last one wins."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_index(index: SplitIndex, file: Path, *, durable: bool = False) -> None:
    """Write an index; until it is complete, an earlier one is unchanged.

    Args:
      durable: wait until it is on disk, so that it survives a power loss. Otherwise a power loss
        may damage it, which its checksums show.

    Raises:
      OSError: it can't be written.
    """
    files, places = index.listed.files, index.listed.places
    arrays: dict[str, Any] = {
        "format": np.array([_FORMAT, index.listed_ns]),
        "suffixes": np.frombuffer(format_names().encode(), np.uint8),
        "paths": files.paths.packed,
        "labels": files.labels,
        "class_names": Paths.pack(files.class_names).packed,
        "left_out": Paths.pack(files.left_out).packed,
        "places": Paths.pack([place or "." for place in places]).packed,
        "states": np.array(list(places.values()), np.int64).reshape(-1, len(PlaceState._fields)),
        "facts": index.facts,
    }
    if isinstance(files, ShardList):
        arrays |= {
            "shards": Paths.pack(files.shards).packed,
            "lengths": np.array(files.lengths, np.int64),
            "positions": files.places,
        }
    with replacing(file, durable=durable) as target:
        np.savez(target, **arrays)


def _read(file: Path, folder: Path) -> SplitIndex | None:
    """The index in a file; None if there is none, or it is damaged or of another version."""
    try:
        if not file.exists():
            return None
        with file.open("rb") as raw, np.load(raw, allow_pickle=False) as arrays:
            return _from_arrays(dict(arrays), folder, file)
    except _UNREADABLE as error:
        warnings.warn(
            f"the index {printable(file)} can't be read ({error}): rebuilding it", stacklevel=2
        )
        return None


def _from_arrays(arrays: dict[str, np.ndarray], folder: Path, file: Path) -> SplitIndex | None:
    version, listed_ns = arrays["format"].tolist()
    other_names = arrays["suffixes"].tobytes() != format_names().encode()
    if version != _FORMAT or (other_names and file != index_beside(folder)):
        return None
    paths, labels, facts = Paths(arrays["paths"]), arrays["labels"], arrays["facts"]
    if not len(paths) == len(labels) == len(facts) or facts.dtype != FACTS:
        raise ValueError("its parts have different lengths")
    class_names = tuple(Paths(arrays["class_names"]))
    files = FileList(folder, paths, labels, class_names, Paths(arrays["left_out"]))
    if "shards" in arrays:
        shards, places = tuple(Paths(arrays["shards"])), arrays["positions"]
        if len(places) != len(paths) or places.dtype != PLACE:
            raise ValueError("its parts have different lengths")
        files = ShardList(
            **vars(files), shards=shards, lengths=tuple(arrays["lengths"].tolist()), places=places
        )
    states = [PlaceState(*state) for state in arrays["states"].tolist()]
    places_of = dict(zip(Paths(arrays["places"]), states, strict=True))
    return SplitIndex(files, facts, Listing(files, places_of), listed_ns, file)

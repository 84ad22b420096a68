"""Lists the files below a folder: follows symbolic links, ignores hidden files and folders."""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from seresnext_jax.errors import UserError, printable


class PlaceState(NamedTuple):
    """What changes when an entry of a folder is added, removed or renamed, or a file is written.

    The ctime changes even if a program sets the mtime back, as tar and rsync do.
    """

    inode: int
    mtime_ns: int
    ctime_ns: int


class Folder(NamedTuple):
    """One folder that was listed."""

    path: str
    names: list[str]
    """Its files, including links to files; in no order."""
    state: PlaceState
    """Its state just before the listing."""


def place_state(path: str | Path) -> PlaceState:
    """The state of a folder or file now.

    Raises:
      OSError: it does not exist.
    """
    found = os.stat(path)
    return PlaceState(found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


def folders_below(folder: str | Path) -> Iterator[Folder]:
    """Yield a folder and the folders below it.

    No folder is listed twice, so links can't make a cycle. A folder that is reached by its own path
    and by links appears under its own path. A link to a folder that contains the link is ignored.

    Raises:
      OSError: a folder can't be listed.
    """
    listed: set[str] = set()
    starts = deque([os.fspath(folder)])
    while starts:
        todo = [starts.popleft()]
        while todo:
            here = todo.pop()
            real = os.path.realpath(here)
            if real in listed:
                continue
            listed.add(real)
            state = place_state(here)
            names, folders = _entries(here)
            # Links are walked separately, after the folders that are reached by their own paths.
            paths = [os.path.join(here, name) for name in sorted(folders)]
            links = {path for path in paths if os.path.islink(path)}
            starts += [path for path in paths if path in links and not leads_back(path)]
            todo += [path for path in reversed(paths) if path not in links]
            yield Folder(here, names, state)


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """The names of the files and of the folders in a folder; hidden ones are left out."""
    with os.scandir(folder) as found:
        entries = list(found)
    # Most entries are files, and this needs no disk access.
    others = [entry for entry in entries if not entry.is_file(follow_symlinks=False)]
    folders = {entry.name for entry in others if _is_folder(entry)}
    names = [name for name in [entry.name for entry in entries] if name[0] != "."]
    if folders:
        names = [name for name in names if name not in folders]
    return names, [name for name in folders if not is_hidden(name)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a cycle of links
        return False


def files_below(folder: str | Path) -> Iterator[str]:
    """Yield the paths of all files below a folder, in the order of `folders_below`.

    Raises:
      OSError: a folder can't be listed.
    """
    for found in folders_below(folder):
        yield from (os.path.join(found.path, name) for name in found.names)


@contextmanager
def listing() -> Iterator[None]:
    """Turn an `OSError` in the block into a `UserError`: a folder can't be listed."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"can't list {printable(error.filename)}: {error.strerror}; make it readable or "
            "remove it"
        ) from error


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, such as .git or the ._x.jpg of macOS."""
    return name.startswith(".")


def leads_back(link: str) -> bool:
    """Whether a link points to a folder that contains the link."""
    target, parent = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, parent]) == target

"""Lists the files below a folder: follows symbolic links, ignores hidden files and folders."""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seresnext_jax.errors import UserError, printable


def files_below(folder: str | Path) -> Iterator[str]:
    """The paths of the files below a folder, including links to files.

    No folder is listed twice, so links can't make a cycle. A folder that is reached by its own path
    and by links appears under its own path. A link to a folder that contains the link is ignored.

    Raises:
      OSError: a folder can't be listed.
    """
    listed: set[str] = set()
    starts = deque([os.fspath(folder)])
    while starts:
        for parent, folders, names in os.walk(starts.popleft(), onerror=_refuse):
            here = os.path.realpath(parent)
            if here in listed:
                folders.clear()
                continue
            listed.add(here)
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            # `os.walk` does not enter links: each one is walked separately, after this walk.
            paths = [os.path.join(parent, name) for name in folders]
            starts += [path for path in paths if os.path.islink(path) and not leads_back(path)]
            yield from (os.path.join(parent, name) for name in names if not is_hidden(name))


@contextmanager
def listing() -> Iterator[None]:
    """Turn the error of a folder that can't be listed into a `UserError`."""
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


def _refuse(error: OSError) -> None:
    raise error

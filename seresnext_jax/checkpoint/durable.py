"""Calls fsync on files and folders, so that they survive a power loss."""

import errno
import os
from pathlib import Path


def sync_tree(folder: Path) -> None:
    """Force a folder and everything in it to disk (fsync).

    Raises:
      OSError: the disk is full or broken.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent) / name)
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """Force the entries of a folder to disk, such as the name of a file that was just renamed.

    Raises:
      OSError: the disk is full or broken.
    """
    try:
        _sync(folder)
    except OSError as error:  # some file systems can't do this for a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and force them to disk.

    Raises:
      OSError: it can't be created.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_folder(path.parent)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

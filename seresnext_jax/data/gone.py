"""Detects a folder that disappears during a run (a network share), so no file is called bad."""

import os
import time

from seresnext_jax.errors import UserError, printable

RETRY_SECONDS = 5.0
_PAUSE = 0.5


class FolderGone(UserError):
    """A folder of the dataset is no longer there."""


def folder_was_away(folder: str) -> bool:
    """Whether a folder that exists now was missing a moment ago.

    Waits a short time for a missing folder to come back.

    Raises:
      FolderGone: it did not come back.
    """
    if os.path.isdir(folder):
        return False
    deadline = time.monotonic() + RETRY_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_PAUSE)
        if os.path.isdir(folder):
            return True
    raise FolderGone(
        f"the folder {printable(_topmost_missing(folder))} is gone (waited {RETRY_SECONDS:g} s): "
        "make it available again and start the program again"
    )


def _topmost_missing(folder: str) -> str:
    """The topmost folder that is missing: the folder itself or one above it."""
    while not os.path.isdir(os.path.dirname(folder)):
        folder = os.path.dirname(folder)
    return folder

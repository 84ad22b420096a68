"""Distinguishes a failing disk, such as a network share that disappeared, from a bad file."""

import errno
import os
import time

from seresnext_jax.errors import UserError, printable

RETRY_SECONDS = 5.0
_PAUSE = 0.5
UNREACHABLE = frozenset(
    {
        *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNREFUSED),
        *(errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ENETDOWN, errno.ENETUNREACH),
    }
)
"""Errors of a network disk that does not answer."""
WORTH_A_RETRY = UNREACHABLE | {errno.EIO, errno.EINTR, errno.EAGAIN}
"""Errors that may not occur again when the file is read a second time."""


class DataGone(UserError):
    """The dataset can't be read any more: a folder is missing, or a disk fails."""


def folder_was_away(folder: str) -> bool:
    """Whether a folder that exists now was missing a moment ago.

    Waits up to `RETRY_SECONDS` for a missing folder to come back.

    Raises:
      DataGone: it is still missing.
    """
    if os.path.isdir(folder):
        return False
    deadline = time.monotonic() + RETRY_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_PAUSE)
        if os.path.isdir(folder):
            return True
    raise DataGone(
        f"the folder {printable(_topmost_missing(folder))} is gone (waited {RETRY_SECONDS:g} s): "
        "make it available and start the program again"
    )


def _topmost_missing(folder: str) -> str:
    """The topmost folder that is missing: the folder itself or one above it."""
    while (above := os.path.dirname(folder)) and not os.path.isdir(above):
        folder = above
    return folder

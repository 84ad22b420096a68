"""Writes a file atomically: readers see the old file or the complete new one."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

_ABANDONED = 3600
"""Age, in seconds, from which an unfinished file counts as left by a killed writer."""


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a new file for writing; it replaces `path` at the end of the block.

    If the block fails or the process is killed, the old file is unchanged. Several processes may
    replace a file at the same time: the last one wins.

    Args:
      durable: first wait until the content is on disk, so that it survives a power loss.

    Raises:
      OSError: the file can't be written.
    """
    unfinished = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
    except (Exception, KeyboardInterrupt):
        unfinished.unlink(missing_ok=True)
        raise
    with suppress(OSError):
        for other in path.parent.glob(f".{path.name}.*.tmp"):
            if time.time() - other.stat().st_mtime >= _ABANDONED:
                other.unlink()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file; if writing fails or the process is killed, the old file is unchanged.

    A symbolic link or a device, such as ``/dev/stdout``, is written in place, so not atomically.

    Args:
      content: text is written as UTF-8; characters that UTF-8 can't encode, such as undecodable
        bytes of a file name, are escaped.

    Raises:
      OSError: the file can't be written.
    """
    data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    with replacing(path) as file:
        file.write(data)

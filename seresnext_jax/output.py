"""Writes a file atomically: readers see the old file or the complete new one."""

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file; if that fails or is killed, the old file is unchanged.

    A link or a device, such as ``/dev/stdout``, is written in place.

    Args:
      content: text is written as UTF-8; what that lacks, such as a byte of a file name in another
        encoding, is escaped.

    Raises:
      OSError: it can't be written.
    """
    data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

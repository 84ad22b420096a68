"""Writes a file atomically: readers see the old file or the complete new one."""

import os
from pathlib import Path


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
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

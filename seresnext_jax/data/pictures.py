"""Loose pictures: what Pillow opens below a folder, without classes."""

import os
from functools import cache
from pathlib import Path

from PIL import Image


def pictures_below(folder: Path) -> list[Path]:
    """The image files below a folder, sorted; hidden files and folders are left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        found += [p for p in paths if p.suffix.lower() in _extensions() and p.is_file()]
    return sorted(found)


@cache
def _extensions() -> frozenset[str]:
    """Of the formats that Pillow can open, in lower case with the dot."""
    known = Image.registered_extensions()
    return frozenset(extension for extension, kind in known.items() if kind in Image.OPEN)

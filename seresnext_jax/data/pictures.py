"""Finds the image files below a folder that has no classes."""

from pathlib import Path

from seresnext_jax.data.formats import split_by_suffix
from seresnext_jax.data.walk import files_below, listing


def split_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """The image files below a folder, and the other files; both sorted.

    Raises:
      UserError: a folder can't be listed.
    """
    with listing():
        images, others = split_by_suffix(list(files_below(folder)))
    return sorted(map(Path, images)), sorted(map(Path, others))

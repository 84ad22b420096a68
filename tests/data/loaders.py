"""Loaders and file lists of small datasets, as the programs open them."""

import os
from pathlib import Path
from typing import Any

import jax

from seresnext_jax.config import Config, DataConfig, ModelConfig
from seresnext_jax.data.files import FileList, list_folder
from seresnext_jax.data.open import Split, open_train, open_val
from seresnext_jax.mesh import make_mesh


def open_split(
    data: DataConfig,
    split: Split,
    *,
    devices: int = 1,
    a: int = 1,
    n: int = 4,
    seed: int = 1,
    num_classes: int = 2,
) -> Any:
    """A loader of `a` passes of `n` images over some devices; one pass, no seed in val."""
    mesh = make_mesh(jax.devices()[:devices])
    config = Config(
        model=ModelConfig(num_classes=num_classes),
        data=data,
        batch_size=n // devices,
        optimizer_batch_size=a * n,
        seed=seed,
    )
    if split == "val":
        return open_val(config, mesh, num_classes=num_classes)
    return open_train(config, mesh)


def list_images(folder: Path) -> FileList:
    """The files that `list_folder` finds, without showing progress."""
    return list_folder(folder, lambda line: None).files


def spoil(*paths: Path) -> None:
    """Overwrite files with zeros, unnoticed: their lengths and times are as before.

    Whoever reads one again finds that it is not an image.
    """
    for path in paths:
        before = path.stat()
        path.write_bytes(bytes(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

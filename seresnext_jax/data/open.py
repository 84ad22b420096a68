"""Choosing the backend that a configuration names."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jax.sharding import Mesh

from seresnext_jax.config import DataConfig
from seresnext_jax.data.batch import Loader
from seresnext_jax.data.files import scan_folder
from seresnext_jax.data.folder import FolderLoader, ImageReader, Transform
from seresnext_jax.data.place import local_columns
from seresnext_jax.data.sampler import Sampler
from seresnext_jax.data.synthetic import NUM_IMAGES, SyntheticLoader
from seresnext_jax.errors import UserError

if TYPE_CHECKING:
    from seresnext_jax.data.dali import DaliLoader

Split = Literal["train", "val"]


def split_folder(config: DataConfig, split: Split) -> Path:
    """Where a split is.

    Raises:
      UserError: no dataset was named, or it does not exist.
    """
    if not config.root:
        raise UserError(
            "--data.root is missing: name the folder that holds train/ and val/, or give "
            "--data.backend synthetic"
        )
    root = Path(os.path.expanduser(config.root))
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder: give --data.root a folder with train/<class>/<image> and "
            "val/<class>/<image>"
        )
    return root / split


def decoding_threads(config: DataConfig, local_devices: int) -> int:
    """Threads of the pipeline that decodes: a GPU has one of its own, all CPU devices share one.

    The shared one has ``workers`` threads for each device, but no more than the machine has cores,
    unless ``workers`` alone says so.
    """
    if config.backend == "dali-gpu":
        return config.workers
    return max(config.workers, min(config.workers * local_devices, os.cpu_count() or 1))


def open_loader(
    config: DataConfig,
    *,
    split: Split,
    mesh: Mesh,
    accumulation: int,
    images_per_pass: int,
    seed: int,
    num_classes: int,
    max_steps: int = -1,
) -> Loader:
    """Open a split; its folder is listed once, after everything else that can be refused.

    Args:
      accumulation: forward passes per step; 1 in evaluation.
      images_per_pass: images of one pass over all devices.
      max_steps: an epoch, or an evaluation, ends after this many steps; -1: it takes the whole
        split.

    Raises:
      UserError: the split is missing or malformed, DALI is not installed, or it is asked to decode
        on a GPU where there is none.
    """
    platform = mesh.devices.flat[0].platform
    if config.backend == "dali-gpu" and platform != "gpu":
        raise UserError(
            f"--data.backend dali-gpu needs an NVIDIA GPU, and JAX runs on the {platform}: "
            "give --data.backend dali-cpu"
        )
    sampler_of = partial(
        Sampler,
        split=split,
        seed=seed,
        accumulation=accumulation,
        images_per_pass=images_per_pass,
        columns=local_columns(mesh, images_per_pass),
        max_steps=max_steps,
    )
    if config.backend == "synthetic":
        sampler = sampler_of(num_images=NUM_IMAGES[split])
        return SyntheticLoader(sampler, mesh, image_size=config.image_size, num_classes=num_classes)
    folder = split_folder(config, split)
    dali_loader = None if config.backend == "folder" else _import_dali(config)
    files = scan_folder(folder)
    sampler = sampler_of(num_images=len(files.paths))
    transform = Transform(
        split=split,
        image_size=config.image_size,
        eval_margin=config.eval_margin,
        crop_area=config.crop_area,
        crop_ratio=config.crop_ratio,
        flip=config.flip,
    )
    # NVIDIA's decoder fills the rest of a truncated JPEG with grey and reports no error.
    find_truncated = config.backend == "dali-gpu"
    reader = ImageReader(files, transform, config.on_bad_image, find_truncated=find_truncated)
    threads = decoding_threads(config, len(mesh.local_devices))
    if dali_loader is None:
        return FolderLoader(reader, sampler, mesh, threads=threads, prefetch=config.prefetch)
    return dali_loader(
        reader,
        sampler,
        mesh,
        device="gpu" if config.backend == "dali-gpu" else "cpu",
        threads=threads,
        prefetch=config.prefetch,
    )


def _import_dali(config: DataConfig) -> "type[DaliLoader]":
    """DALI's loader, imported here as it is optional.

    Raises:
      UserError: DALI is not installed.
    """
    try:
        from seresnext_jax.data.dali import DaliLoader
    except ImportError as error:
        raise UserError(
            f"--data.backend {config.backend} needs DALI ({error}): install the extra cuda12 or "
            "cuda13, or give --data.backend folder"
        ) from error
    return DaliLoader

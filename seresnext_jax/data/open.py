"""Opens a split with the backend that a configuration names."""

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import jax
from jax.sharding import Mesh

from seresnext_jax.config import Config, EvaluationConfig, InputConfig
from seresnext_jax.data.batch import Loader
from seresnext_jax.data.class_names import listed
from seresnext_jax.data.files import (
    FileList,
    class_folders,
    differing_classes,
    empty_classes,
    number_problems,
    scan_folder,
    scan_val,
)
from seresnext_jax.data.folder import FolderLoader
from seresnext_jax.data.place import local_columns
from seresnext_jax.data.reader import ImageReader
from seresnext_jax.data.sampler import EvalSampler, Sampler, TrainSampler
from seresnext_jax.data.synthetic import NUM_IMAGES, SyntheticLoader
from seresnext_jax.data.transform import CentreCrop, TrainCrop
from seresnext_jax.errors import UserError, printable
from seresnext_jax.plan import passes_per_step

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


def open_splits(config: Config, mesh: Mesh) -> tuple[Loader, Loader | None]:
    """Open the splits of a run: train, and val unless the run only trains.

    The smaller split is opened first, so that its faults are reported sooner.

    Raises:
      UserError: as `open_train` and `open_val`; or the splits have different classes.
    """
    if config.training_only:
        return open_train(config, mesh), None
    _backend(config, mesh)  # refuse a bad backend before listing folders
    if config.data.backend != "synthetic":
        _check_classes(config)
    val = open_val(config, mesh, num_classes=config.model.num_classes)
    return open_train(config, mesh), val


def _check_classes(config: Config) -> None:
    """Compare the class folders of both splits with the network before listing the images."""
    train, val = (split_folder(config.data, split) for split in SPLITS)
    names = class_folders(train)
    problems = number_problems(names, train, config.model.num_classes)
    for problem in problems + differing_classes(names, class_folders(val)):
        raise UserError(problem)


def open_train(config: Config, mesh: Mesh) -> Loader:
    """Open the training split.

    Raises:
      UserError: the batch sizes do not divide, or as `open_val`.
    """
    accumulation = passes_per_step(config, mesh.size)
    return _open(
        config,
        "train",
        mesh,
        TrainCrop(config.data),
        partial(TrainSampler, seed=config.seed, accumulation=accumulation, max_steps=config.prof),
        num_classes=config.model.num_classes,
        seed=config.seed,
    )


def open_val(
    config: EvaluationConfig,
    mesh: Mesh,
    *,
    num_classes: int,
    class_names: tuple[str, ...] | None = None,
) -> Loader:
    """Open the validation split.

    Args:
      class_names: the class names in label order. None: the labels follow the sorted names of the
        class folders, and there must be `num_classes` folders.

    Raises:
      UserError: the split is missing or malformed, its class folders do not match the classes, DALI
        is not installed, or DALI should decode on a GPU and there is none.
    """
    data = config.data
    return _open(
        config,
        "val",
        mesh,
        CentreCrop(data.image_size, data.eval_margin),
        partial(EvalSampler, max_steps=config.prof),
        num_classes=num_classes,
        class_names=class_names,
    )


def _open(
    config: EvaluationConfig,
    split: Split,
    mesh: Mesh,
    crop: TrainCrop | CentreCrop,
    sampler_of: Callable[..., Sampler],
    *,
    num_classes: int,
    class_names: tuple[str, ...] | None = None,
    seed: int = 0,
) -> Loader:
    """Open a split; its folder is listed once, after all other checks."""
    data = config.data
    make_loader = _backend(config, mesh)
    images = config.batch_size * mesh.size
    sampler_of = partial(sampler_of, images_per_pass=images, columns=local_columns(mesh, images))
    if data.backend == "synthetic":
        sampler = sampler_of(num_images=NUM_IMAGES[split])
        return SyntheticLoader(
            sampler, mesh, seed=seed, image_size=data.image_size, num_classes=num_classes
        )
    folder = split_folder(data, split)
    if split == "train":
        files = scan_folder(folder, num_classes)
    else:
        files = scan_val(folder, num_classes, class_names)
        _warn_of_empty_classes(files)
    sampler = sampler_of(num_images=len(files.paths))
    # NVIDIA's decoder fills the rest of a truncated JPEG with grey and reports no error.
    find_truncated = data.backend == "dali-gpu"
    upright = data.exif_orientation
    reader = ImageReader(
        files, crop, data.on_bad_image, find_truncated=find_truncated, upright=upright
    )
    # Older checkpoints have fingerprints without this option.
    turning = ", upright" * upright
    return make_loader(
        reader,
        sampler,
        mesh,
        fingerprint=files.fingerprint(f"({crop}, {seed}, {sampler.images_per_step}{turning})"),
        threads=decoding_threads(data, len(mesh.local_devices)),
        prefetch=data.prefetch,
    )


def _warn_of_empty_classes(files: FileList) -> None:
    empty = empty_classes(files)
    if empty and jax.process_index() == 0:
        warnings.warn(
            f"{files.folder} has no images of {len(empty)} of {len(files.class_names)} classes "
            f"({listed(empty)}): the accuracy is that of the other classes",
            stacklevel=2,
        )


def split_folder(data: InputConfig, split: Split) -> Path:
    """The folder of a split.

    Raises:
      UserError: no dataset was named, or the folder does not exist.
    """
    if not data.root:
        raise UserError(
            "--data.root is missing: name the folder that contains train/ and val/, or give "
            "--data.backend synthetic"
        )
    root = Path(os.path.expanduser(data.root))
    if not root.is_dir():
        raise UserError(
            f"{printable(root)} is not a folder: give --data.root a folder with "
            "train/<class>/<image> and val/<class>/<image>"
        )
    return root / split


def decoding_threads(data: InputConfig, local_devices: int) -> int:
    """Threads of a decoding pipeline: each GPU has its own pipeline, all CPU devices share one.

    The shared one has ``workers`` threads per device, capped at the number of cores but never fewer
    than ``workers``.
    """
    if data.backend == "dali-gpu":
        return data.workers
    return max(data.workers, min(data.workers * local_devices, os.cpu_count() or 1))


def _backend(config: EvaluationConfig, mesh: Mesh) -> Callable[..., Loader]:
    """The loader class of the backend. DALI's is imported here because DALI is optional.

    Raises:
      UserError: DALI is not installed, or should decode on a GPU and there is none.
    """
    data, platform = config.data, mesh.devices.flat[0].platform
    if data.backend == "synthetic":
        return SyntheticLoader
    if data.backend == "folder":
        return FolderLoader
    if data.backend == "dali-gpu" and platform != "gpu":
        raise UserError(
            f"--data.backend dali-gpu needs an NVIDIA GPU, and JAX runs on the {platform}: "
            "give --data.backend dali-cpu"
        )
    try:
        from seresnext_jax.data.dali import DaliLoader
    except ImportError as error:
        raise UserError(
            f"--data.backend {data.backend} needs DALI ({error}): install the extra cuda12 or "
            "cuda13, or give --data.backend folder"
        ) from error
    return partial(DaliLoader, device="gpu" if data.backend == "dali-gpu" else "cpu")

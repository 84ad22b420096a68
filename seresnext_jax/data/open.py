"""Opens a split with the backend that a configuration names."""

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal

import jax
from jax.sharding import Mesh

from seresnext_jax.commands import command
from seresnext_jax.config import Config, EvaluationConfig, InputConfig
from seresnext_jax.data.backends.synthetic import NUM_IMAGES, SyntheticLoader
from seresnext_jax.data.batch import Backend, Loader
from seresnext_jax.data.class_names import listed
from seresnext_jax.data.classes import (
    check_train,
    differing_classes,
    empty_classes,
    label_val,
    number_problems,
)
from seresnext_jax.data.files import FileList, Progress, class_folders
from seresnext_jax.data.index import open_index
from seresnext_jax.data.place import local_columns
from seresnext_jax.data.reader import ImageReader
from seresnext_jax.data.sampler import EvalSampler, Sampler, Streams, TrainSampler
from seresnext_jax.data.shards import ShardList, find_shards
from seresnext_jax.data.transform import CentreCrop, TrainCrop
from seresnext_jax.errors import CommonError, UserError, printable
from seresnext_jax.plan import passes_per_step
from seresnext_jax.processes.agree import cores_on_this_host, processes_by, processes_on_this_host

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
_SECONDS_BETWEEN_LINES = 5.0


def open_splits(config: Config, mesh: Mesh) -> tuple[Loader, Loader | None]:
    """Open the training and the validation split of a run; (train, None) if it only trains.

    The smaller split is opened first, so that its errors are reported sooner.

    Raises:
      UserError: as `open_train` and `open_val`; or the splits have different classes.
    """
    if config.training_only:
        return open_train(config, mesh), None
    if config.data.backend != "synthetic":
        _find_backend(config.data.backend, mesh)  # refuse a bad one before listing folders
        check_classes(config)
    val = open_val(config, mesh, num_classes=config.model.num_classes)
    train = open_train(config, mesh)
    for problem in differing_classes(train.class_names, val.class_names):
        raise UserError(problem)
    return train, val


def check_classes(config: Config) -> None:
    """Compare the class folders of both splits with the network, without listing the images.

    Raises:
      UserError: a folder is missing, or the classes differ.
    """
    train, val = (split_folder(config.data, split) for split in SPLITS)
    if find_shards(train) or find_shards(val):  # only listing shards shows their classes
        return
    names = class_folders(train)
    problems = number_problems(names, train, config.model.num_classes)
    for problem in problems + differing_classes(names, class_folders(val)):
        raise UserError(problem)


def open_train(config: Config, mesh: Mesh) -> Loader:
    """Open the training split.

    Raises:
      UserError: the batch sizes do not divide, a class has no images, the data has no shards but
        `shards_at_once` is set, or for the reasons of `open_val`.
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
        shards_at_once=config.data.shards_at_once,
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
      CommonError: the processes find different files.
    """
    data = config.data
    return _open(
        config,
        "val",
        mesh,
        CentreCrop(data.image_size, data.eval_margin, data.interpolation),
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
    shards_at_once: int = 0,
) -> Loader:
    """Open a split; a bad backend is refused before the folder is listed."""
    data = config.data
    images = config.batch_size * mesh.size
    sampler_of = partial(sampler_of, images_per_pass=images, columns=local_columns(mesh, images))
    if data.backend == "synthetic":
        sampler = sampler_of(num_images=NUM_IMAGES[split])
        return SyntheticLoader(
            sampler, mesh, seed=seed, image_size=data.image_size, num_classes=num_classes
        )
    backend = _find_backend(data.backend, mesh)
    index = open_index(split_folder(data, split), data.index, show_if_slow())
    if jax.process_count() > 1:
        check_same_files(index.files)
    if split == "train":
        files = check_train(index.files, num_classes)
        sampler_of = partial(sampler_of, streams=_streams(files, shards_at_once))
    else:
        files = label_val(index.files, num_classes, class_names)
        _warn_of_empty_classes(files)
    sampler = sampler_of(num_images=len(files.paths))
    reader = ImageReader(
        replace(index, files=files),
        crop,
        data.on_bad_image,
        # NVIDIA's decoder fills the rest of a truncated JPEG with grey and reports no error.
        find_truncated=backend.on_gpu,
        upright=data.exif_orientation,
    )
    # Older checkpoints have fingerprints without these options.
    other = ", upright" * data.exif_orientation
    if isinstance(sampler, TrainSampler) and sampler.streams:
        other += f", {sampler.streams.at_once} shards at once {sampler.streams.digest()}"
    return backend.open_loader(
        reader,
        sampler,
        mesh,
        fingerprint=files.fingerprint(f"({crop}, {seed}, {sampler.images_per_step}{other})"),
        threads=decoding_threads(data, mesh, on_gpu=backend.on_gpu),
        prefetch=data.prefetch,
    )


def check_same_files(files: FileList) -> None:
    """Check that all processes have listed the same files; all of them must call this.

    Raises:
      CommonError: they have not; some images would be read twice or not at all.
    """
    groups = processes_by(f"{len(files.paths)} images (checksum {files.fingerprint('')[:8]})")
    if len(groups) > 1:
        found = "; ".join(f"{where}: {what}" for what, where in groups.items())
        raise CommonError(
            f"the processes find different files in {printable(files.folder)} ({found}): copy the "
            "dataset again to the hosts that differ (rsync --archive --delete), or give "
            "--data.root a folder that all of them share"
        )


def _streams(files: FileList, at_once: int) -> Streams | None:
    if not at_once:
        return None
    if not isinstance(files, ShardList):
        raise UserError(
            f"--data.shards-at-once {at_once} needs shards, and {printable(files.folder)} has "
            f"class folders: leave it out, or pack them with {command('pack_data')}"
        )
    return Streams.of(files.places["shard"], files.places["offset"], at_once)


def show_if_slow() -> Progress:
    """A `Progress` that prints a line every few seconds at most, and only on process 0."""
    shown = time.monotonic()

    def show(line: str) -> None:
        nonlocal shown
        if time.monotonic() - shown > _SECONDS_BETWEEN_LINES and jax.process_index() == 0:
            shown = time.monotonic()
            print(line, flush=True)

    return show


def _warn_of_empty_classes(files: FileList) -> None:
    empty = empty_classes(files)
    if empty and jax.process_index() == 0:
        warnings.warn(
            f"{files.folder} has no images of {len(empty)} of {len(files.class_names)} classes "
            f"({listed(empty)}): the accuracy is that of the other classes",
            stacklevel=2,
        )


def split_folder(data: InputConfig, split: Split) -> Path:
    """The folder of a split, which may be missing.

    Raises:
      UserError: ``--data.root`` is empty or is not a folder.
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


def decoding_threads(data: InputConfig, mesh: Mesh, *, on_gpu: bool) -> int:
    """Threads of each DALI pipeline, or of the pool of the ``folder`` backend.

    On GPUs each device has a pipeline with ``workers`` threads. On the CPU the devices of a process
    share one. A host then has ``workers`` threads per device, capped at its number of cores but
    never fewer than ``workers``; they are divided among its processes, rounding up.
    """
    if on_gpu:
        return data.workers
    here = processes_on_this_host()
    wanted = data.workers * len(mesh.local_devices) * here
    on_host = max(data.workers, min(wanted, cores_on_this_host()))
    return -(-on_host // here)


def _find_backend(name: str, mesh: Mesh) -> Backend:
    """The backend called `name`; its module is imported here because DALI is optional.

    Raises:
      UserError: DALI is not installed, or should decode on a GPU and there is none.
    """
    try:
        module = import_module(f"seresnext_jax.data.backends.{name.replace('-', '_')}")
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"--data.backend {name} needs DALI ({error}): install the extra demo (CPU), "
            "cuda12 or cuda13, or give --data.backend folder"
        ) from error
    backend: Backend = module.BACKEND
    platform = mesh.devices.flat[0].platform
    if backend.on_gpu and platform != "gpu":
        raise UserError(
            f"--data.backend {name} needs an NVIDIA GPU, and JAX runs on the {platform}: "
            "give --data.backend dali-cpu"
        )
    return backend

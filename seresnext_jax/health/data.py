"""Checks of a run's data and disk: the folders, the speed of reading, the space for checkpoints."""

import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
from jax.sharding import Mesh

from seresnext_jax.config import Config
from seresnext_jax.data.open import check_classes, open_train
from seresnext_jax.errors import UserError, printable
from seresnext_jax.health.finding import Finding, problem_of, shown_bytes
from seresnext_jax.plan import resolve
from seresnext_jax.report.run_page import show_duration

PUBLISHED: dict[tuple[str, str, str], float] = {
    ("se-resnext101-32x4d", "A100", "fp16"): 855,
    ("se-resnext101-32x4d", "A100", "tf32"): 395,
    ("se-resnext101-32x4d", "V100", "fp16"): 443,
    ("se-resnext101-32x4d", "V100", "fp32"): 132,
}
"""Training speed of the original on one GPU, in images/s, as NVIDIA published it; by architecture,
a part of the device's name, and precision."""
_WARM_UP, _MEASURED = 2, 8
"""Number of batches read before the measurement, and of batches measured."""


def check_dataset(config: Config) -> Finding:
    """Compare the class folders of both splits with the network; the files are not opened."""
    if config.data.backend == "synthetic":
        return Finding("dataset", "ok", "synthetic, so no files are needed")
    if config.training_only:
        return Finding("dataset", "ok", "val/ is not needed")
    try:
        check_classes(config)
    except UserError as error:
        return problem_of("dataset", error)
    return Finding("dataset", "ok", "train/ and val/ have the classes of the network")


def check_reading(config: Config, mesh: Mesh) -> Finding:
    """Read batches as the run will, and compare the speed with what the devices need."""
    name = "reading"
    if config.data.backend == "synthetic":
        return Finding(name, "ok", "synthetic, so nothing is read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rate, images = measure_reading(config, mesh)
    except UserError as error:
        return problem_of(name, error)
    needed = needed_rate(config, mesh.devices.flat[0].device_kind, mesh.size)
    return judge_reading(rate, images, needed)


def measure_reading(config: Config, mesh: Mesh) -> tuple[float, int]:
    """The speed of the run's loader in images/s, and the number of training images.

    Files that were read recently come from the page cache; the disk may be slower.

    Raises:
      UserError: as `open_train`, the images fill no step, or one can't be decoded.
    """
    # Several passes per step would only make the batches larger.
    loader = open_train(replace(config, optimizer_batch_size=-1, prof=-1), mesh)
    try:
        resolve(config, num_images=loader.num_images, num_devices=mesh.size)
        batches = loader.batches(0)
        for batch in islice(batches, _WARM_UP):
            jax.block_until_ready(batch.images)
        started, count = time.perf_counter(), 0
        for batch in islice(batches, _MEASURED):
            jax.block_until_ready(batch.images)
            count += batch.mask.size
        return count / (time.perf_counter() - started), loader.num_images
    finally:
        loader.close()


def needed_rate(config: Config, device_kind: str, devices: int) -> float | None:
    """Images/s that all devices together should train at, from `PUBLISHED`; None if it has none."""
    for (arch, device, precision), rate in PUBLISHED.items():
        if device in device_kind and (arch, precision) == (config.model.arch, config.precision):
            return devices * rate
    return None


def judge_reading(rate: float, images: int, needed: float | None) -> Finding:
    """The finding about a reading speed.

    Args:
      rate: images/s that are read.
      images: training images.
      needed: images/s that the devices train at; None: unknown.
    """
    epoch = show_duration(images / rate)
    text = f"{rate:.0f} images/s, so reading an epoch of {images} images takes about {epoch}"
    numbers = {"images_per_s": rate}
    if needed is None:
        return Finding("reading", "ok", text, numbers=numbers)
    numbers["needed_images_per_s"] = needed
    text += f"; the devices train at about {needed:.0f}"
    if rate >= needed:
        return Finding("reading", "ok", text, numbers=numbers)
    fix = (
        "raise --data.workers up to the number of cores, or decode with --data.backend dali-gpu; "
        "a copy of the dataset on a local disk helps if the disk is the limit"
    )
    return Finding("reading", "warning", text, fix, numbers)


def check_disk(
    config: Config, state_bytes: int, free_bytes: Callable[[Path], int] | None = None
) -> Finding:
    """Compare the free space at the workspace with the checkpoints that the run will keep.

    Args:
      state_bytes: size of one checkpoint.
      free_bytes: the free space at an existing folder; None: ask the system.
    """
    place = Path(os.path.expanduser(config.workspace)).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        return Finding(
            "disk", "problem", f"{printable(place)} is a file", "give another --workspace"
        )
    if not os.access(place, os.W_OK):
        fix = "change its permissions or give another --workspace"
        return Finding("disk", "problem", f"{printable(place)} can't be written", fix)
    free = (free_bytes or (lambda path: shutil.disk_usage(path).free))(place)
    numbers = {"free_bytes": float(free), "checkpoint_bytes": float(state_bytes)}
    if config.no_checkpoints:
        return Finding(
            "disk", "ok", f"{shown_bytes(free)} free; no checkpoints are saved", numbers=numbers
        )
    keep = config.checkpoint.keep
    # The last ones, the best one, and the one being written; -1 keeps one per epoch.
    count = config.epochs + 1 if keep < 0 else max(keep, 1) + 2
    needed = count * state_bytes
    text = (
        f"{shown_bytes(free)} free, {count} checkpoints of {shown_bytes(state_bytes)} need "
        f"{shown_bytes(needed)}"
    )
    if free < needed:
        fix = "free space, give another --workspace" + ", or a smaller --checkpoint.keep" * (
            keep not in (0, 1)
        )
        return Finding("disk", "problem", text, fix, numbers)
    return Finding("disk", "ok", text, numbers=numbers)

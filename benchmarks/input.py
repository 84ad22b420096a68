"""Measures how fast Pillow, DALI on the CPU and torch's DataLoader read the same images."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from benchmarks.table import Row
from seresnext_jax.config import Config, DataConfig
from seresnext_jax.data.batch import Loader
from seresnext_jax.data.files import FileList
from seresnext_jax.data.images import BadImage, open_rgb
from seresnext_jax.data.index import open_index
from seresnext_jax.data.open import open_train, split_folder
from seresnext_jax.data.sampler import crop_draws
from seresnext_jax.data.transform import TrainCrop
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh

PHOTOGRAPHS = 256
"""Number of images; their (width, height) below is about that of an average ImageNet photo."""
_SIZE = (500, 375)


def write_photographs(folder: Path) -> None:
    """Write train/<class>/*.jpg: random windows of the two photographs in scikit-learn."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    for label, photograph in enumerate(load_sample_images().images):
        target = folder / "train" / str(label)
        target.mkdir(parents=True)
        height, width = photograph.shape[:2]
        for index in range(PHOTOGRAPHS // 2):
            left = int(generator.integers(width - _SIZE[0] + 1))
            top = int(generator.integers(height - _SIZE[1] + 1))
            window = photograph[top : top + _SIZE[1], left : left + _SIZE[0]]
            Image.fromarray(window).save(target / f"{index:03}.jpg", quality=95)


def training_files(data: DataConfig) -> FileList:
    """The files of the training split, without an index of their own on the disk."""
    return open_index(split_folder(data, "train"), "", lambda line: None).files


def with_classes(config: Config, data: DataConfig) -> Config:
    """`config` with `data` and the number of classes of its training split."""
    files = training_files(data)
    number = len(files.class_names) or int(files.labels.max()) + 1
    return replace(config, data=data, model=replace(config.model, num_classes=number))


def open_loader(config: Config, mesh: Mesh) -> Loader:
    """The loader of the training split.

    Raises:
      UserError: as `open_train`, or the images do not fill one batch.
    """
    loader = open_train(config, mesh)
    if not loader.num_steps:
        loader.close()
        raise UserError(
            f"{loader.num_images} training images do not fill a batch of "
            f"{config.batch_size * mesh.size}: lower --batch-sizes"
        )
    return loader


def measure_backends(
    data: DataConfig, *, batch_size: int, warmup: int, steps: int, with_torch: bool
) -> list[Row]:
    """Images per second of Pillow, DALI on the CPU and, if asked for, torch's DataLoader."""
    backends: tuple[Literal["folder", "dali-cpu"], ...] = ("folder", "dali-cpu")
    config = with_classes(Config(batch_size=batch_size), data)
    rates: dict[str, float] = {}
    for backend in backends:
        there = replace(config, data=replace(data, backend=backend))
        rates[backend] = _loader_rate(there, warmup, steps)
    if with_torch:
        rates["torch DataLoader"] = _torch_rate(data, batch_size, warmup, steps)
    return [
        {
            "backend": name,
            "workers": data.workers,
            "img/s": rate,
            "img/s per worker": rate / data.workers,
            "/ Pillow": rate / rates["folder"],
        }
        for name, rate in rates.items()
    ]


def needs(rows: list[Row], data: DataConfig, gpus: tuple[int, ...], rate: float) -> Iterator[Row]:
    """Yield the workers and disk bandwidth for GPUs that train `rate` images per second each."""
    files = training_files(data)
    some = np.linspace(0, len(files.paths) - 1, num=min(256, len(files.paths)), dtype=int)
    size = float(np.mean([files.num_bytes(int(index)) for index in some]))
    for row in rows:
        for number in gpus:
            images = number * rate
            yield {
                "backend": row["backend"],
                "GPUs": number,
                "img/s": images,
                "workers": int(np.ceil(images / row["img/s per worker"])),
                "disk MB/s": images * size / 1e6,
            }


def _loader_rate(config: Config, warmup: int, steps: int) -> float:
    loader = open_loader(config, make_mesh(jax.devices()[:1]))
    skipped = warmup + config.data.prefetch
    rate = batch_rate(loader.batches(0), config.batch_size, skipped, steps)
    loader.close()
    return rate


def batch_rate(batches: Iterator[Any], batch_size: int, skipped: int, steps: int) -> float:
    """Images per second, timed from batch `skipped` + 1 on: earlier ones were decoded ahead."""
    for _ in range(skipped + 1):
        next(batches)
    started = time.perf_counter()
    for _ in range(steps):
        jax.block_until_ready(next(batches))
    return steps * batch_size / (time.perf_counter() - started)


class TorchDataset:
    """A map-style dataset for torch: training images that Pillow decodes and crops."""

    def __init__(self, files: FileList, crop: TrainCrop, on_bad_image: str) -> None:
        self.files = files
        self.crop = crop
        self.on_bad_image = on_bad_image

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        label = int(self.files.labels[index])
        draws = crop_draws(0, 0, index, 1)[0]
        try:
            image = open_rgb(self.files.source(index))
        except BadImage:
            if self.on_bad_image == "error":
                raise
            size = self.crop.image_size
            return np.zeros((size, size, 3), np.uint8), label
        return self.crop(image, draws).copy(), label


def _torch_rate(data: DataConfig, batch_size: int, warmup: int, steps: int) -> float:
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        TorchDataset(training_files(data), TrainCrop(data), data.on_bad_image),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=data.workers,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )

    # Two batches per worker are decoded ahead; each epoch begins after the previous one has ended.
    batches = chain.from_iterable(repeat(loader))
    return batch_rate(batches, batch_size, warmup + 2 * data.workers, steps)

"""Measures the work before decoding: listing a split, the memory it takes, and feeding DALI."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from PIL import Image

from benchmarks.input import open_loader
from benchmarks.table import Row
from seresnext_jax.config import Config
from seresnext_jax.data.index import SETTLED
from seresnext_jax.mesh import make_mesh

_CLASSES = 1000
_LINKS = 20_000
"""Hard links to one file; file systems limit their number."""


@contextmanager
def many_files(number: int) -> Iterator[Path]:
    """Create a temporary dataset: `number` hard links to a few JPEGs in up to 1,000 classes."""
    with TemporaryDirectory() as name:
        root = Path(name)
        image = Image.fromarray(np.zeros((375, 500, 3), np.uint8))
        classes = min(_CLASSES, number)
        for label in range(classes):
            (root / "train" / f"n{label:08}").mkdir(parents=True)
        for index in range(number):
            file = root / f"{index // _LINKS}.jpg"
            if index % _LINKS == 0:
                image.save(file)
            label = index % classes
            os.link(file, root / "train" / f"n{label:08}" / f"n{label:08}_{index}.JPEG")
        time.sleep(SETTLED / 1e9)  # the index does not trust folders that have just changed
        yield root


def measure_feed(config: Config, steps: int) -> list[Row]:
    """Measure two starts of a training loader; the second one uses the index that the first wrote.

    Each start has its own process, and its rates are those of one process.
    """
    with TemporaryDirectory() as index:
        data = replace(config.data, backend="dali-cpu", index=index)
        config = replace(config, data=data)
        return [_in_process(config, steps, start) for start in ("listed", "from the index")]


def _in_process(config: Config, steps: int, start: str) -> Row:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, config, steps, start).result()


def _measure(config: Config, steps: int, start: str) -> Row:
    import seresnext_jax.data.backends.dali_cpu  # noqa: F401  its import is not the loader's memory

    mesh = make_mesh(jax.devices()[:1])
    before = _memory()
    began = time.perf_counter()
    loader = open_loader(config, mesh)
    opened = time.perf_counter() - began
    memory = _memory() - before
    steps = min(steps, loader.num_steps)
    rates = [_rate(loader, config.batch_size, steps) for _ in range(2)]
    loader.close()
    return {
        "images": loader.num_images,
        "start": start,
        "opened in s": opened,
        "MB": memory / 1e6,
        "first time img/s": rates[0],
        "then img/s": rates[1],
    }


def _rate(loader: object, batch_size: int, steps: int) -> float:
    """Images per second that are prepared for DALI in the first steps."""
    began = time.perf_counter()
    for _ in islice(loader.inputs(0), steps):  # type: ignore[attr-defined]
        pass
    return steps * batch_size / (time.perf_counter() - began)


def _memory() -> int:
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

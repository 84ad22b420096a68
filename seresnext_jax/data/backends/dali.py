"""The NVIDIA DALI backends: the crops of transform.py as DALI graphs that run ahead of the step.

DALI draws no random numbers and keeps no state here: each step feeds it images (or their paths) and
crop windows, so a pipeline can start at any step. transform.py computes the windows from the image
sizes in the file headers. A new pipeline takes many steps to reach full speed, so pipelines are
reused for all epochs and evaluations. In parallel, Pillow reads the images that DALI can't decode
or decodes differently.
"""

import math
import os
import re
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.plugin.jax import DALIGenericIterator
from PIL import Image

from seresnext_jax.data.backends.file_loader import FileLoader
from seresnext_jax.data.batch import Batch
from seresnext_jax.data.place import place
from seresnext_jax.data.reader import Headers, ImageReader
from seresnext_jax.data.sampler import Rows, Sampler
from seresnext_jax.data.shards import ShardList
from seresnext_jax.data.transform import RESAMPLING, CentreCrop, TrainCrop
from seresnext_jax.mesh import batch_sharding

Node = Any
"""A value in a DALI graph."""

_READING = re.compile(r"operator `nvidia\.dali\.fn\.(decoders\.|io\.file\.)")
_RESOURCES = re.compile("CUDA|bad_alloc|out of memory")
"""Patterns in the text of DALI's errors: an operator that reads or decodes files has failed; memory
or the GPU was the cause."""

_BLACK_PIXEL = Path(__file__).with_name("black.ppm")
_MIN_READING_THREADS = 4
"""Minimum number of threads for headers, shards and Pillow's decoding; on a network disk most of
them wait."""
_HEADERS_PER_TASK = 32
_SLOW_HEADER = 2e-4
"""Seconds per header from which several threads read headers: a local disk takes 2e-5 to 6e-5, a
network disk more than 1e-3."""


class DaliLoader(FileLoader):
    """Loads a split with DALI; see `Loader`. Pillow reads a batch that DALI refuses."""

    def __init__(
        self,
        reader: ImageReader,
        sampler: Sampler,
        mesh: Mesh,
        *,
        device: Literal["cpu", "gpu"],
        fingerprint: str,
        threads: int,
        prefetch: int,
    ) -> None:
        """Create a loader; `threads` is the number of threads of each pipeline."""
        super().__init__(reader, sampler, mesh, fingerprint=fingerprint)
        self._device = device
        self._threads = threads
        self._prefetch = prefetch
        self._pipelines: list[_Pipeline] = []
        self._next_step: int | None = None
        """The step that the pipelines return next; None: they can't continue."""
        self._pool = ThreadPoolExecutor(
            max(_MIN_READING_THREADS, threads), thread_name_prefix="read"
        )

    def batches(self, start: int) -> Iterator[Batch]:
        """See `Loader`."""
        for step in self._sampler.steps(start):
            yield self._batch(step)
            if step % self.num_steps == 0 and step > start:
                self._pool.submit(self._reader.keep)

    def _batch(self, step: int) -> Batch:
        """The batch of `step`: from the open pipelines if it is their next step, else from new."""
        if step != self._next_step:
            self._pipelines = self._open(step)
        self._next_step = None  # after an error they can't continue
        try:
            images = [next(pipeline.outputs)["images"] for pipeline in self._pipelines]
        except RuntimeError as error:
            if not _is_about_a_file(error):
                raise
            # If DALI can't decode an image, it drops the entire batch and does not always name the
            # image. Pillow finds the image and applies the policy; then DALI reads the others.
            rows, known = self._sampler.rows(step), len(self.bad_files)
            images = self._read_with_pillow(rows)
            if len(self.bad_files) > known:
                return self._batch(step)
            reason = " ".join(str(error).rpartition("encountered:")[2].split())
            warnings.warn(f"Pillow reads a batch that DALI refused: {reason}", stacklevel=2)
            return place(self._mesh, self._sampler, *self._reader.collect(rows, images))
        # After the last step of an evaluation comes the first step of the next one.
        self._next_step = next(iter(self._sampler.steps(step + 1)), 0)
        fed = [pipeline.fed.popleft() for pipeline in self._pipelines]
        return self._assemble(*zip(*map(_with_pillows, fed, images), strict=True))

    def close(self) -> None:
        """See `Loader`. A pipeline is freed with its iterator."""
        self._pipelines, self._next_step = [], None
        self._reader.keep()
        self._pool.shutdown(cancel_futures=True)

    def _open(self, start: int) -> list["_Pipeline"]:
        """Open one pipeline per local GPU, or one on the CPU, beginning at step `start`."""
        columns = self._sampler.columns
        if self._device == "cpu":
            return [self._pipeline(start, columns, None)]
        local = self._mesh.local_devices
        each = (columns.stop - columns.start) // len(local)
        return [
            self._pipeline(
                start,
                slice(columns.start + i * each, columns.start + (i + 1) * each),
                device.local_hardware_id,
            )
            for i, device in enumerate(local)
        ]

    def inputs(self, start: int) -> Iterator[tuple[Any, ...]]:
        """Yield the inputs that DALI would get for this process's images from step `start` on.

        For benchmarks of everything except DALI's decoding; see `_feed`.
        """
        fed: deque[_Fed] = deque()
        for given in self._inputs(start, self._sampler, fed):
            fed.popleft()
            yield given

    def _inputs(
        self, start: int, sampler: Sampler, fed: deque["_Fed"]
    ) -> Iterator[tuple[Any, ...]]:
        steps = _with_headers(self._reader, map(sampler.rows, count(start)), self._pool)
        return _feed(self._reader, steps, fed, self._pool)

    def _pipeline(self, start: int, columns: slice, device_id: int | None) -> "_Pipeline":
        fed: deque[_Fed] = deque()
        sampler = replace(self._sampler, columns=columns)
        pipeline = _graph(
            self._inputs(start, sampler, fed),
            self._reader.crop,
            upright=self._reader.upright,
            from_paths=not self._reader.files.in_shards,
            batch_size=sampler.accumulation * (columns.stop - columns.start),
            num_threads=self._threads,
            device_id=device_id,
            prefetch_queue_depth=self._prefetch,
        )
        # If the constructor prepared a batch, it would raise that batch's errors.
        outputs = DALIGenericIterator([pipeline], ["images"], size=-1, prepare_first_batch=False)
        return _Pipeline(fed, outputs)

    def _assemble(self, fed: Sequence[Rows], images: Sequence[jax.Array]) -> Batch:
        """Combine the pipelines' images and inputs into one batch."""
        if self._device == "cpu":
            rows = fed[0]
            labels = self._reader.files.labels[rows.index]
            return place(self._mesh, self._sampler, np.asarray(images[0]), labels, rows.mask)

        # A pipeline's rows are its columns of each pass, and are already on its GPU.
        passes, sharding = self._sampler.accumulation, batch_sharding(self._mesh)
        shards = [x.reshape(passes, -1, *x.shape[1:]) for x in images]
        shape = (passes, self._sampler.images_per_pass, *shards[0].shape[2:])
        whole = jax.make_array_from_single_device_arrays(shape, sharding, shards)
        index = np.concatenate([rows.index.reshape(passes, -1) for rows in fed], axis=1)
        mask = np.concatenate([rows.mask.reshape(passes, -1) for rows in fed], axis=1)
        by_process = jax.make_array_from_process_local_data
        labels = by_process(sharding, self._reader.files.labels[index])
        return Batch(whole, labels, by_process(sharding, mask))

    def _read_with_pillow(self, rows: Rows) -> list[np.ndarray | None]:
        return list(self._pool.map(lambda row: self._reader.image(*row), rows.images()))


class _Fed(NamedTuple):
    """The input of one pipeline for one step."""

    rows: Rows
    by_pillow: dict[int, "Future[np.ndarray | None]"]
    """The images that Pillow decodes in parallel, by row."""


class _Pipeline(NamedTuple):
    fed: deque[_Fed]
    """The steps that it was given and has not returned yet."""
    outputs: DALIGenericIterator


def _is_about_a_file(error: RuntimeError) -> bool:
    """Whether DALI failed to read or decode a file, rather than ran out of memory."""
    text = str(error)
    return bool(_READING.search(text)) and not _RESOURCES.search(text)


def _with_headers(
    reader: ImageReader, steps: Iterator[Rows], pool: ThreadPoolExecutor
) -> Iterator[tuple[Rows, Headers]]:
    """Yield each step with the headers of its images; the next step's are being read meanwhile.

    Raises:
      UserError: a header can't be read, and the policy is ``error``.
    """
    ahead: deque[tuple[Rows, list[Future[float]]]] = deque()
    seconds = 0.0  # per header; on a fast disk, more threads would only wait for the GIL
    for step in steps:
        unchecked = reader.unchecked(step.index)
        tasks = math.ceil(len(unchecked) / _HEADERS_PER_TASK) if seconds > _SLOW_HEADER else 1
        parts = np.array_split(unchecked, tasks) if len(unchecked) else []
        ahead.append((step, [pool.submit(_check, reader, part) for part in parts]))
        if len(ahead) > 1:
            rows, checks = ahead.popleft()
            seconds = max((check.result() for check in checks), default=seconds)
            yield rows, reader.headers(rows.index)


def _check(reader: ImageReader, index: np.ndarray) -> float:
    """Check one or more images; returns the average seconds per image."""
    began = time.perf_counter()
    reader.check(index)
    return (time.perf_counter() - began) / len(index)


def _feed(
    reader: ImageReader,
    steps: Iterator[tuple[Rows, Headers]],
    fed: deque[_Fed],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[Any, ...]]:
    """Yield a pipeline's inputs, step by step: paths or encoded images, and the crop's `numbers`.

    Appends the rows of each step to `fed`. A black pixel replaces each image that is left out (its
    mask is False) or that Pillow decodes. Paths need no Python object per image.
    """
    for rows, headers in steps:
        kept = headers.sizes[:, 0] > 0
        by_dali = kept & headers.for_dali
        by_pillow = {}
        if not by_dali.all():
            arguments = dict(enumerate(rows.images()))
            by_pillow = {
                row: pool.submit(reader.image, *arguments[row])
                for row in np.flatnonzero(kept & ~by_dali).tolist()
            }
        fed.append(_Fed(replace(rows, mask=rows.mask & kept), by_pillow))
        files = _encoded if reader.files.in_shards else _paths
        numbers = reader.crop.numbers(np.where(by_dali[:, None], headers.sizes, 1), *rows.draws)
        yield (
            files(reader, rows.index, by_dali, pool),
            *(array.astype(np.int32) for array in numbers),
        )


def _paths(
    reader: ImageReader, index: np.ndarray, by_dali: np.ndarray, pool: ThreadPoolExecutor
) -> np.ndarray:
    """(R, L) uint8 paths of images, or of the black pixel where `by_dali` is False.

    DALI ignores the zeros after a path.
    """
    paths = reader.files.paths.rows(index, f"{reader.files.folder}{os.sep}")
    black = np.frombuffer(os.fsencode(_BLACK_PIXEL), np.uint8)
    if not by_dali.all():
        paths = np.pad(paths, ((0, 0), (0, max(0, len(black) + 1 - paths.shape[1]))))
        paths[~by_dali] = np.pad(black, (0, paths.shape[1] - len(black)))
    return paths


def _encoded(
    reader: ImageReader, index: np.ndarray, by_dali: np.ndarray, pool: ThreadPoolExecutor
) -> list[np.ndarray]:
    """Encoded images from shards, each 1-D uint8; a black pixel where `by_dali` is False."""
    files = reader.files
    assert isinstance(files, ShardList)
    black = _BLACK_PIXEL.read_bytes()
    images = pool.map(
        lambda i, wanted: files.read(i) if wanted else black, index.tolist(), by_dali.tolist()
    )
    return [np.frombuffer(image, np.uint8) for image in images]


def _with_pillows(fed: _Fed, images: jax.Array) -> tuple[Rows, Any]:
    """The rows and the images (R, S, S, 3) of a pipeline, including those decoded by Pillow."""
    rows, by_pillow = fed
    read = {row: image.result() for row, image in by_pillow.items()}
    out = [row for row, image in read.items() if image is None]
    whole = {row: image for row, image in read.items() if image is not None}
    if out:
        mask = rows.mask.copy()
        mask[out] = False
        rows = replace(rows, mask=mask)
    if whole:
        pixels = np.array(images)
        pixels[list(whole)] = list(whole.values())
        return rows, jax.device_put(pixels, images.sharding)
    return rows, images


@pipeline_def
def _graph(
    feed: Iterator[tuple[Any, ...]],
    crop: TrainCrop | CentreCrop,
    *,
    upright: bool,
    from_paths: bool,
) -> Node:
    """The DALI graph of the crop; its output is the images (R, S, S, 3) uint8."""
    size = crop.image_size
    decoding = {
        "device": "cpu" if Pipeline.current().device_id is None else "mixed",
        "output_type": types.RGB,
        "adjust_orientation": upright,
    }
    if isinstance(crop, CentreCrop):
        files, start, resized = fn.external_source(source=feed, num_outputs=3, batch=True)
        encoded = fn.io.file.read(files) if from_paths else files
        images = fn.decoders.image(encoded, **decoding)
        images = _resize(images, fn.cast(resized, dtype=types.FLOAT), crop)
        return fn.slice(images, start=start, shape=(size, size), axes=(0, 1))
    files, start, shape, flip = fn.external_source(source=feed, num_outputs=4, batch=True)
    encoded = fn.io.file.read(files) if from_paths else files
    images = fn.decoders.image_slice(encoded, start=start, shape=shape, axes=(0, 1), **decoding)
    return fn.flip(_resize(images, (size, size), crop), horizontal=flip)


def _resize(images: Node, size: Node, crop: TrainCrop | CentreCrop) -> Node:
    cubic = RESAMPLING[crop.interpolation] is Image.Resampling.BICUBIC
    kind = types.INTERP_CUBIC if cubic else types.INTERP_LINEAR
    return fn.resize(images, size=size, interp_type=kind, antialias=True)

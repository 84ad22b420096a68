"""NVIDIA DALI: the transformation of folder.py as a graph of its operators, run ahead of the step.

DALI draws nothing and remembers nothing here: it is fed the paths and windows of each step, so a
pipeline can be built at any step. The windows come from sampler.py and the sizes in the headers.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.plugin.jax import DALIGenericIterator

from seresnext_jax.data.batch import Batch
from seresnext_jax.data.folder import ImageReader, Transform, fingerprint, pairs, place
from seresnext_jax.data.sampler import Rows, Sampler, flips, random_crops
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import batch_sharding

Node = Any
"""A value in a DALI graph."""


class DaliLoader:
    """Loads a split with DALI; see `Loader`. A batch that DALI can't decode is read by Pillow."""

    def __init__(
        self,
        reader: ImageReader,
        sampler: Sampler,
        mesh: Mesh,
        *,
        device: Literal["cpu", "gpu"],
        workers: int,
        prefetch: int,
    ) -> None:
        self.num_images = sampler.num_images
        self.num_steps = sampler.num_steps
        self.class_names = reader.files.class_names
        self.fingerprint = fingerprint(reader.files, sampler, reader.transform)
        self.bad_files = reader.bad_files
        self._reader = reader
        self._sampler = sampler
        self._mesh = mesh
        self._device = device
        self._workers = workers
        self._prefetch = prefetch

    def batches(self, start: int) -> Iterator[Batch]:
        """See `Loader`."""
        pipelines = self._open(start)
        for step in count(start):
            try:
                images = [next(pipeline.outputs)["images"] for pipeline in pipelines]
            except StopIteration:
                return
            except RuntimeError as error:
                # DALI drops the whole batch of an image that it can't decode, and does not always
                # name it. Pillow finds the culprit and knows the policy.
                yield self._read_with_pillow(next(self._sampler.rows(step)), error)
                pipelines = self._open(step + 1)
            else:
                yield self._assemble([pipeline.fed.popleft() for pipeline in pipelines], images)

    def close(self) -> None:
        """See `Loader`. A pipeline ends with its iterator; there is nothing to close."""

    def _open(self, start: int) -> list["_Pipeline"]:
        """One pipeline for each local GPU, or one for all on the CPU, beginning at step `start`."""
        columns = self._sampler.columns
        if self._device == "cpu":
            return [self._pipeline(start, columns, None, self._workers)]
        local = self._mesh.local_devices
        each = (columns.stop - columns.start) // len(local)
        return [
            self._pipeline(
                start,
                slice(columns.start + i * each, columns.start + (i + 1) * each),
                device.local_hardware_id,
                max(1, self._workers // len(local)),
            )
            for i, device in enumerate(local)
        ]

    def _pipeline(
        self, start: int, columns: slice, device_id: int | None, threads: int
    ) -> "_Pipeline":
        fed: deque[_Fed] = deque()
        sampler = replace(self._sampler, columns=columns)
        pipeline = _graph(
            _feed(self._reader, sampler.rows(start), fed),
            self._reader.transform,
            batch_size=sampler.accumulation * (columns.stop - columns.start),
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=self._prefetch,
        )
        # Its default of preparing a batch in the constructor can swallow the end of a split.
        outputs = DALIGenericIterator([pipeline], ["images"], size=-1, prepare_first_batch=False)
        return _Pipeline(fed, outputs)

    def _assemble(self, fed: list["_Fed"], images: list[jax.Array]) -> Batch:
        """The pipelines' images and what they were fed, as one batch."""
        images = [_blacken(x, f.readable) for x, f in zip(images, fed, strict=True)]
        if self._device == "cpu":
            rows = fed[0].rows
            labels = self._reader.files.labels[rows.index]
            return place(self._mesh, self._sampler, np.asarray(images[0]), labels, rows.mask)

        # Each pipeline's rows are its own columns of each pass, and lie on its GPU already.
        passes, sharding = self._sampler.accumulation, batch_sharding(self._mesh)
        shards = [x.reshape(passes, -1, *x.shape[1:]) for x in images]
        shape = (passes, self._sampler.images_per_pass, *shards[0].shape[2:])
        whole = jax.make_array_from_single_device_arrays(shape, sharding, shards)
        index = np.concatenate([f.rows.index.reshape(passes, -1) for f in fed], axis=1)
        mask = np.concatenate([f.rows.mask.reshape(passes, -1) for f in fed], axis=1)
        by_process = jax.make_array_from_process_local_data
        labels = by_process(sharding, self._reader.files.labels[index])
        return Batch(whole, labels, by_process(sharding, mask))

    def _read_with_pillow(self, rows: Rows, error: RuntimeError) -> Batch:
        known_bad = len(self.bad_files)
        images = (self._reader.image(*pair) for pair in pairs(rows))
        arrays = self._reader.collect(rows, images)
        if len(self.bad_files) == known_bad:
            warnings.warn(f"Pillow reads a batch that DALI refused: {error}", stacklevel=2)
        return place(self._mesh, self._sampler, *arrays)


class _Fed(NamedTuple):
    rows: Rows
    readable: np.ndarray
    """(R,) bool; False where another image was fed, because this one has no readable header."""


class _Pipeline(NamedTuple):
    fed: deque[_Fed]
    """What it was given and has not returned yet."""
    outputs: DALIGenericIterator


def _blacken(images: jax.Array, readable: np.ndarray) -> jax.Array:
    """Images (R, S, S, 3) with those that are not readable black, as Pillow's loader has them."""
    return images if readable.all() else images * readable[:, None, None, None].astype(np.uint8)


def _feed(
    reader: ImageReader, steps: Iterator[Rows], fed: deque[_Fed]
) -> Iterator[tuple[list[np.ndarray], ...]]:
    """A pipeline's inputs, step by step: paths as bytes, and the numbers of `_windows`.

    An image without a readable header is left out by feeding another one under a False mask.

    Raises:
      UserError: under the policy ``error``, or if no image of a step can be read.
    """
    for rows in steps:
        sizes = [reader.size(index) for index in rows.index.tolist()]
        good = next((i for i, size in enumerate(sizes) if size is not None), None)
        if good is None:
            raise UserError(
                f"none of {len(sizes)} images in a row can be decoded, {reader.bad_files[-1]} "
                "among them: mend the dataset"
            )
        index = [i if size else rows.index[good] for i, size in zip(rows.index, sizes, strict=True)]
        readable = np.array([size is not None for size in sizes])
        fed.append(_Fed(replace(rows, mask=rows.mask & readable), readable))
        paths = [reader.path(i).encode(errors="surrogateescape") for i in index]
        shapes = np.array([size or sizes[good] for size in sizes])
        numbers = _windows(reader.transform, shapes, rows.draws)
        yield ([np.frombuffer(path, np.uint8) for path in paths], *map(list, numbers))


def _windows(transform: Transform, shapes: np.ndarray, draws: np.ndarray) -> list[np.ndarray]:
    """What DALI is told of each image, int32: (top, left), (height, width), and in training flip.

    In training the window is cut out before resizing. In evaluation height and width are those to
    resize to, and the window is cut out of the result.
    """
    heights, widths = shapes[:, 0], shapes[:, 1]
    if transform.split == "val":
        windows = np.array([transform.eval_window(*shape) for shape in shapes.tolist()])
        return [windows[:, 2:].astype(np.int32), windows[:, :2].astype(np.float32)]
    crops = random_crops(draws, heights, widths, transform.crop_area, transform.crop_ratio)
    flip = (flips(draws) & transform.flip).astype(np.int32)
    return [crops[:, :2].astype(np.int32), crops[:, 2:].astype(np.int32), flip]


@pipeline_def
def _graph(feed: Iterator[tuple[list[np.ndarray], ...]], transform: Transform) -> Node:
    """Images (R, S, S, 3) uint8."""
    size = transform.image_size
    decoding = {
        "device": "cpu" if Pipeline.current().device_id is None else "mixed",
        "output_type": types.RGB,
        "adjust_orientation": False,
    }
    if transform.split == "val":
        paths, start, resized = fn.external_source(source=feed, num_outputs=3, batch=True)
        images = fn.decoders.image(fn.io.file.read(paths), **decoding)
        images = _resize(images, resized)
        return fn.slice(images, start=start, shape=(size, size), axes=(0, 1))
    paths, start, shape, flip = fn.external_source(source=feed, num_outputs=4, batch=True)
    images = fn.decoders.image_slice(
        fn.io.file.read(paths), start=start, shape=shape, axes=(0, 1), **decoding
    )
    return fn.flip(_resize(images, (size, size)), horizontal=flip)


def _resize(images: Node, size: Node) -> Node:
    return fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)

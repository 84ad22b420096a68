"""NVIDIA DALI: the transformation of folder.py as a graph of its operators, run ahead of the step.

DALI draws nothing and remembers nothing here: paths and uniforms are fed from the sampler, so a
pipeline can be built at any step. The crop is computed in the graph, from the size in the header,
by the formulas of sampler.py.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.plugin.jax import DALIGenericIterator

from seresnext_jax.data.batch import Batch
from seresnext_jax.data.folder import ImageReader, Transform, fingerprint, pairs, place
from seresnext_jax.data.sampler import ATTEMPTS, Rows, Sampler
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
        feeds, iterator = self._open(start)
        for step in count(start):
            try:
                outputs = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                # DALI drops the whole batch of an image that it can't decode, and does not always
                # name it. Pillow finds the culprit and knows the policy.
                rows = next(self._sampler.rows(step), None)
                if rows is None:
                    return
                yield self._read_by_hand(rows, error)
                feeds, iterator = self._open(step + 1)
            else:
                yield self._assemble([feed.popleft() for feed in feeds], outputs)

    def close(self) -> None:
        """See `Loader`."""

    def _open(self, start: int) -> tuple[list[deque[Rows]], Any]:
        """Pipelines that begin with step `start`, and the rows each of them has been fed."""
        shards = self._shards()
        feeds: list[deque[Rows]] = [deque() for _ in shards]
        pipelines = [
            _pipeline(
                self._feed(start, columns, feed),
                self._reader.transform,
                self._device,
                batch_size=self._sampler.accumulation * (columns.stop - columns.start),
                num_threads=max(1, self._workers // len(shards)),
                device_id=device_id,
                prefetch_queue_depth=self._prefetch,
            )
            for (device_id, columns), feed in zip(shards, feeds, strict=True)
        ]
        outputs = ["images", "channels"]
        return feeds, DALIGenericIterator(pipelines, outputs, size=-1, prepare_first_batch=False)

    def _shards(self) -> list[tuple[int | None, slice]]:
        """(GPU, columns) of each pipeline: one for each local GPU, or one for all on the CPU."""
        if self._device == "cpu":
            return [(None, self._sampler.columns)]
        local = self._mesh.local_devices
        first = self._sampler.columns.start
        each = (self._sampler.columns.stop - first) // len(local)
        return [
            (device.local_hardware_id, slice(first + i * each, first + (i + 1) * each))
            for i, device in enumerate(local)
        ]

    def _feed(self, start: int, columns: slice, fed: deque[Rows]) -> Iterator[list[Any]]:
        """What a pipeline reads: each step's paths as bytes and, to train, uniforms (R, DRAWS)."""
        files = self._reader.files
        sampler = Sampler(**{**vars(self._sampler), "columns": columns})
        for rows in sampler.rows(start):
            fed.append(rows)
            paths = [
                str(files.folder / files.paths[index]).encode(errors="surrogateescape")
                for index in rows.index
            ]
            encoded = [np.frombuffer(path, np.uint8) for path in paths]
            yield [encoded] if sampler.split == "val" else [encoded, rows.draws]

    def _assemble(self, rows: list[Rows], outputs: Any) -> Batch:
        """The pipelines' outputs as one batch."""
        outputs = outputs if isinstance(outputs, list) else [outputs]
        index = np.concatenate([r.index for r in rows])
        mask = np.concatenate([r.mask for r in rows])
        labels = self._reader.files.labels[index]
        if self._device == "gpu":
            return self._assemble_on_devices(labels, mask, [o["images"] for o in outputs])
        images = np.asarray(outputs[0]["images"])
        # CMYK and transparency: DALI's colours differ from Pillow's.
        odd = np.flatnonzero(~np.isin(np.asarray(outputs[0]["channels"]), (1, 3)))
        if odd.size:
            images = images.copy()
            for row in odd.tolist():
                image = self._reader.image(int(index[row]), rows[0].draws[row])
                mask[row] &= image is not None
                images[row] = 0 if image is None else image
        return place(self._mesh, self._sampler, images, labels, mask)

    def _assemble_on_devices(
        self, labels: np.ndarray, mask: np.ndarray, images: list[jax.Array]
    ) -> Batch:
        """Images that lie on their GPUs already; rows are in order pipeline, pass, column."""
        passes, per_pass = self._sampler.accumulation, self._sampler.images_per_pass
        shards = [x.reshape(passes, -1, *x.shape[1:]) for x in images]
        shape = (passes, per_pass, *shards[0].shape[2:])
        sharding = batch_sharding(self._mesh)
        whole = jax.make_array_from_single_device_arrays(shape, sharding, shards)

        def by_pass(rows: np.ndarray) -> jax.Array:
            local = rows.reshape(len(images), passes, -1).swapaxes(0, 1).reshape(passes, -1)
            return jax.make_array_from_process_local_data(sharding, local)

        return Batch(whole, by_pass(labels), by_pass(mask))

    def _read_by_hand(self, rows: Rows, error: RuntimeError) -> Batch:
        images = (self._reader.image(*pair) for pair in pairs(rows))
        pixels, labels, mask = self._reader.collect(rows, images)
        if mask.sum() == rows.mask.sum():
            warnings.warn(f"Pillow reads a batch that DALI refused: {error}", stacklevel=2)
        return place(self._mesh, self._sampler, pixels, labels, mask)


@pipeline_def
def _pipeline(
    feed: Iterator[list[Any]],
    transform: Transform,
    device: Literal["cpu", "gpu"],
) -> tuple[Node, Node]:
    """Images (R, S, S, 3) uint8, and how many channels each file has (R,) int64."""
    num_inputs = 1 if transform.split == "val" else 2
    inputs = fn.external_source(source=feed, num_outputs=num_inputs, batch=True)
    encoded = fn.io.file.read(inputs[0])
    shape = fn.peek_image_shape(encoded, adjust_orientation=False)
    height = fn.cast(shape[0], dtype=types.FLOAT64)
    width = fn.cast(shape[1], dtype=types.FLOAT64)
    decoder = "mixed" if device == "gpu" else "cpu"
    size = transform.image_size

    if transform.split == "val":
        images = fn.decoders.image(
            encoded, device=decoder, output_type=types.RGB, adjust_orientation=False
        )
        new_h, new_w, top, left = _eval_window(height, width, size + transform.eval_margin, size)
        images = _resize(images, _pair(new_h, new_w, types.FLOAT))
        images = fn.slice(
            images, start=_pair(top, left, types.INT32), shape=(size, size), axes=(0, 1)
        )
        return images, shape[2]

    top, left, h, w = _random_crop(inputs[1], height, width, transform)
    images = fn.decoders.image_slice(
        encoded,
        device=decoder,
        start=_pair(top, left, types.INT32),
        shape=_pair(h, w, types.INT32),
        axes=(0, 1),
        output_type=types.RGB,
        adjust_orientation=False,
    )
    images = _resize(images, (size, size))
    if transform.flip:
        images = fn.flip(images, horizontal=fn.cast(inputs[1][-1] < 0.5, dtype=types.INT32))
    return images, shape[2]


def _resize(images: Node, size: Node) -> Node:
    return fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)


def _pair(first: Node, second: Node, dtype: types.DALIDataType) -> Node:
    return fn.cast(fn.stack(first, second), dtype=dtype)


def _random_crop(
    draws: Node, height: Node, width: Node, transform: Transform
) -> tuple[Node, Node, Node, Node]:
    """`sampler.random_crop` on graph nodes, in float64 like it."""
    ratio = transform.crop_ratio
    areas = height * width * _between(draws[:ATTEMPTS], transform.crop_area)
    log_ratio = (float(np.log(ratio[0])), float(np.log(ratio[1])))
    ratios = math.exp(_between(draws[ATTEMPTS : 2 * ATTEMPTS], log_ratio))
    widths = math.floor(math.sqrt(areas * ratios) + 0.5)
    heights = math.floor(math.sqrt(areas / ratios) + 0.5)
    fits = (widths >= 1.0) & (widths <= width) & (heights >= 1.0) & (heights <= height)

    # The first window that fits has the highest priority among those that do. Reductions know no
    # float64; whole numbers this small are exact in float32.
    priority = types.Constant(np.arange(ATTEMPTS, 0, -1, dtype=np.float32), device="cpu")
    fitting = fn.cast(fits, dtype=types.FLOAT) * priority
    best = fn.reductions.max(fitting)
    chosen = fn.cast(fits & (fitting == best), dtype=types.FLOAT)
    found = fn.cast(best > 0.0, dtype=types.FLOAT64)

    def pick(sizes: Node) -> Node:
        return fn.cast(
            fn.reductions.sum(fn.cast(sizes, dtype=types.FLOAT) * chosen), dtype=types.FLOAT64
        )

    central_h = math.min(height, math.floor(width / ratio[0] + 0.5))
    central_w = math.min(width, math.floor(height * ratio[1] + 0.5))
    h = found * pick(heights) + (1.0 - found) * central_h
    w = found * pick(widths) + (1.0 - found) * central_w
    free_h, free_w = height - h, width - w
    top = found * math.floor(draws[2 * ATTEMPTS] * (free_h + 1.0))
    left = found * math.floor(draws[2 * ATTEMPTS + 1] * (free_w + 1.0))
    top = top + (1.0 - found) * math.floor(free_h / 2.0)
    left = left + (1.0 - found) * math.floor(free_w / 2.0)
    return top, left, h, w


def _between(draws: Node, bounds: tuple[float, float]) -> Node:
    return bounds[0] + draws * (bounds[1] - bounds[0])


def _eval_window(
    height: Node, width: Node, shorter: int, size: int
) -> tuple[Node, Node, Node, Node]:
    """`sampler.eval_window` on graph nodes."""
    upright = fn.cast(height > width, dtype=types.FLOAT64)
    longer_h = math.floor(shorter * height / width)
    longer_w = math.floor(shorter * width / height)
    new_h = upright * longer_h + (1.0 - upright) * float(shorter)
    new_w = upright * float(shorter) + (1.0 - upright) * longer_w
    return new_h, new_w, _half_to_even(new_h - size), _half_to_even(new_w - size)


def _half_to_even(whole: Node) -> Node:
    """``round(whole / 2)`` as Python rounds: halves go to the even neighbour."""
    half = math.floor(whole / 2.0)
    is_half = whole - 2.0 * half
    is_odd = half - 2.0 * math.floor(half / 2.0)
    return half + is_half * is_odd

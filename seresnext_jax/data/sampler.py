"""Image order and random numbers as pure functions of (seed, step), so that loaders are stateless.

Philox is a counter-based generator: it can compute the draws of any position directly.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np

from seresnext_jax.data.transform import DRAWS
from seresnext_jax.plan import steps_per_epoch

_ORDER_STREAM, _CROP_STREAM = 0, 1


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """A fresh permutation (num_images,) int64 for each seed and epoch."""
    return np.random.Generator(_philox(_ORDER_STREAM, seed, epoch)).permutation(num_images)


@dataclass(frozen=True, eq=False)
class Streams:
    """The images of each shard, for epochs that read a few shards at a time, each sequentially.

    The batches of such an epoch mix the images of `at_once` shards. The images of one shard always
    come in the order of the shard; which shards are mixed changes with the epoch.
    """

    images: np.ndarray
    """(M,) int64 indices into the file list: the images of the first shard, of the second, …"""
    ends: np.ndarray
    """(S,) int64: the (exclusive) end of each shard in `images`."""
    at_once: int

    @staticmethod
    def of(shards: np.ndarray, offsets: np.ndarray, at_once: int) -> "Streams":
        """Create the streams.

        Args:
          shards: (M,) the number of each image's shard.
          offsets: (M,) its offset in the shard, in bytes.
        """
        images = np.lexsort([offsets, shards])
        ends = np.flatnonzero(np.diff(shards[images], append=-1)) + 1
        return Streams(images, ends, at_once)

    def digest(self) -> str:
        """A CRC-32, in hexadecimal, of the order of the images in the shards."""
        return f"{zlib.crc32(self.ends.tobytes(), zlib.crc32(self.images.tobytes())):08x}"

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """An epoch's order: (M,) int64 indices into the file list."""
        generator = np.random.Generator(_philox(_ORDER_STREAM, seed, epoch))
        shards = np.split(self.images, self.ends[:-1])
        mixed = generator.permutation(len(shards)).tolist()
        parts = []
        for first in range(0, len(shards), self.at_once):
            group = [shards[shard] for shard in mixed[first : first + self.at_once]]
            turns = np.repeat(np.arange(len(group)), [len(images) for images in group])
            part = np.empty(len(turns), np.int64)
            # The k-th turn of a shard is for its k-th image.
            part[np.argsort(generator.permutation(turns), kind="stable")] = np.concatenate(group)
            parts.append(part)
        return np.concatenate(parts)


@lru_cache(maxsize=2)  # two epochs are in use when a backend reads ahead
def _recent_order(num_images: int, streams: Streams | None, seed: int, epoch: int) -> np.ndarray:
    return streams.order(seed, epoch) if streams else epoch_order(num_images, seed, epoch)


def crop_draws(seed: int, epoch: int, start: int, count: int) -> np.ndarray:
    """Uniforms in [0, 1) for the positions [start, start + count) of an epoch's order.

    Returns:
      (count, DRAWS) float64; each row depends only on the seed, the epoch and its position.
    """
    philox = _philox(_CROP_STREAM, seed, epoch)
    # Philox makes four 64-bit words per counter value, one word per float64.
    words = start * DRAWS
    philox.advance(words // 4)
    skip = words % 4
    generator = np.random.Generator(philox)
    return generator.random(skip + count * DRAWS)[skip:].reshape(count, DRAWS)


def _philox(stream: int, seed: int, epoch: int) -> np.random.Philox:
    key = np.array([(stream << 32) | seed, epoch], dtype=np.uint64)
    return np.random.Philox(key=key)


@dataclass(frozen=True)
class Rows:
    """Which images make up one step of this process, row by row; R = A × local columns."""

    index: np.ndarray
    """(R,) int64 indices into the file list."""
    mask: np.ndarray
    """(R,) bool; False for padding."""
    draws: tuple[np.ndarray, ...] = ()
    """Random numbers of the crop: one array (R, DRAWS) float64 in training, none in evaluation."""

    def images(self) -> Iterator[tuple[Any, ...]]:
        """The arguments of `ImageReader.image`, row by row."""
        return zip(self.index.tolist(), *self.draws, strict=True)


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """The images of each step.

    Row n of pass a is position ``a * images_per_pass + n`` of the step, so the division of a step
    into passes and devices does not change its images or their crops.
    """

    num_images: int
    images_per_pass: int
    columns: slice
    """The range of a pass's images that this process provides."""
    accumulation: int = 1
    max_steps: int = -1
    """Upper limit of the steps in an epoch or evaluation; -1: no limit."""

    @property
    def images_per_step(self) -> int:
        """Number of images in one step over all processes."""
        return self.accumulation * self.images_per_pass

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Number of steps in one epoch or evaluation."""

    @abstractmethod
    def steps(self, start: int) -> Iterable[int]:
        """The numbers of the steps from `start` on."""

    @abstractmethod
    def rows(self, step: int) -> Rows:
        """This process's rows of a step."""

    def _positions(self) -> np.ndarray:
        """(R,) int64: which of a step's images are this process's, row by row."""
        step = np.arange(self.images_per_step).reshape(self.accumulation, self.images_per_pass)
        return step[:, self.columns].reshape(-1)


@dataclass(frozen=True, kw_only=True)
class TrainSampler(Sampler):
    """Endless epochs, each in a new order; an epoch's incomplete last step is dropped."""

    seed: int
    streams: Streams | None = None
    """The shards, if an epoch mixes a few of them at a time; None: it shuffles all images."""

    @property
    def num_steps(self) -> int:
        return steps_per_epoch(self.num_images, self.images_per_step, self.max_steps)

    def steps(self, start: int) -> Iterable[int]:
        return count(start)

    def rows(self, step: int) -> Rows:
        """See `Sampler`; steps count over the whole run."""
        epoch, step = divmod(step, self.num_steps)
        first, local = step * self.images_per_step, self._positions()
        order = _recent_order(self.num_images, self.streams, self.seed, epoch)
        draws = crop_draws(self.seed, epoch, first, self.images_per_step)
        return Rows(order[first + local], np.ones(len(local), bool), (draws[local],))


@dataclass(frozen=True, kw_only=True)
class EvalSampler(Sampler):
    """Each image once, in file order; the last step is padded."""

    @property
    def num_steps(self) -> int:
        steps = -(-self.num_images // self.images_per_step)
        return steps if self.max_steps < 0 else min(steps, self.max_steps)

    def steps(self, start: int) -> Iterable[int]:
        return range(start, self.num_steps)

    def rows(self, step: int) -> Rows:
        """See `Sampler`; after the last step comes the first one of the next evaluation."""
        position = step % self.num_steps * self.images_per_step + self._positions()
        index = np.minimum(position, self.num_images - 1)
        return Rows(index, position < self.num_images)

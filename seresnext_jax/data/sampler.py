"""Order, crops and flips as pure functions of (seed, epoch, position): a loader holds no state.

Philox is a counter-based generator, so the draws of any position are had without those before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

ATTEMPTS = 10
"""Tries of a random crop before the centre is taken (torchvision's RandomResizedCrop)."""
DRAWS = 2 * ATTEMPTS + 3
"""Uniform numbers per image: area and ratio of each try, top, left, flip."""

_ORDER_STREAM, _CROP_STREAM = 0, 1


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """A fresh permutation (num_images,) int64 for each seed and epoch."""
    return np.random.Generator(_philox(_ORDER_STREAM, seed, epoch)).permutation(num_images)


def crop_draws(seed: int, epoch: int, start: int, count: int) -> np.ndarray:
    """Uniforms in [0, 1) for the positions [start, start + count) of an epoch's order.

    Returns:
      (count, DRAWS) float64; a position's row depends on nothing else.
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
    """(R,) int64 into the file list."""
    mask: np.ndarray
    """(R,) bool; False for padding."""
    draws: np.ndarray
    """(R, DRAWS) float64; zeros in evaluation."""


@dataclass(frozen=True)
class Sampler:
    """The images of each step.

    Row n of pass a is position ``a * images_per_pass + n`` of the step, so the division of a step
    into passes and devices does not change its images or their crops.
    """

    split: Literal["train", "val"]
    num_images: int
    seed: int
    accumulation: int
    images_per_pass: int
    columns: slice
    """The images of a pass that this process delivers."""
    max_steps: int = -1
    """An epoch, or an evaluation, ends after this many steps; -1: it takes the whole split."""

    @property
    def images_per_step(self) -> int:
        """Images of one step over all processes."""
        return self.accumulation * self.images_per_pass

    @property
    def num_steps(self) -> int:
        """Steps per epoch: training drops the remainder, evaluation pads it."""
        steps, rest = divmod(self.num_images, self.images_per_step)
        if self.split == "val" and rest:
            steps += 1
        return steps if self.max_steps < 0 else min(steps, self.max_steps)

    def rows(self, start: int) -> Iterator[Rows]:
        """The steps from `start` on: endless in training, one pass in evaluation."""
        return self._train(start) if self.split == "train" else self._evaluate(start)

    def _train(self, start: int) -> Iterator[Rows]:
        epoch, step = divmod(start, self.num_steps)
        while True:
            order = epoch_order(self.num_images, self.seed, epoch)
            for step in range(step, self.num_steps):  # noqa: B020 (the first epoch starts midway)
                first = step * self.images_per_step
                draws = crop_draws(self.seed, epoch, first, self.images_per_step)
                local = self._local(np.arange(self.images_per_step))
                yield Rows(order[first + local], np.ones(len(local), bool), draws[local])
            epoch, step = epoch + 1, 0

    def _evaluate(self, start: int) -> Iterator[Rows]:
        for step in range(start, self.num_steps):
            position = self._local(np.arange(self.images_per_step)) + step * self.images_per_step
            index = np.minimum(position, self.num_images - 1)
            yield Rows(index, position < self.num_images, np.zeros((len(index), DRAWS)))

    def _local(self, rows: np.ndarray) -> np.ndarray:
        per_pass = rows.reshape(self.accumulation, self.images_per_pass)
        return per_pass[:, self.columns].reshape(-1)


def random_crops(
    draws: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Windows of random resized crops.

    torchvision's RandomResizedCrop.get_params: up to ten windows with an area uniform in `area`
    times the image's and a log-uniform width / height; the first that fits is placed uniformly,
    else the largest centred window whose ratio is allowed. Rounds halves up.

    Args:
      draws: (R, DRAWS) uniforms.
      heights, widths: (R,) of the images, in pixels.

    Returns:
      (R, 4) int64: top, left, height, width.
    """
    height, width = heights[:, None].astype(np.float64), widths[:, None].astype(np.float64)
    areas = height * width * _between(draws[:, :ATTEMPTS], area)
    log_ratio = (np.log(ratio[0]), np.log(ratio[1]))
    ratios = np.exp(_between(draws[:, ATTEMPTS : 2 * ATTEMPTS], log_ratio))
    tried_w = _round(np.sqrt(areas * ratios))
    tried_h = _round(np.sqrt(areas / ratios))
    fits = (tried_w >= 1) & (tried_w <= width) & (tried_h >= 1) & (tried_h <= height)
    first = np.argmax(fits, axis=1)[:, None]
    found = np.any(fits, axis=1, keepdims=True)

    central_h = np.minimum(height, _round(width / ratio[0]))
    central_w = np.minimum(width, _round(height * ratio[1]))
    h = np.where(found, np.take_along_axis(tried_h, first, axis=1), central_h)
    w = np.where(found, np.take_along_axis(tried_w, first, axis=1), central_w)
    free_h, free_w = height - h, width - w
    top = np.where(found, draws[:, [2 * ATTEMPTS]] * (free_h + 1), free_h / 2)
    left = np.where(found, draws[:, [2 * ATTEMPTS + 1]] * (free_w + 1), free_w / 2)
    return np.floor(np.concatenate([top, left, h, w], axis=1)).astype(np.int64)


def random_crop(
    draws: np.ndarray,
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """`random_crops` of one image: (top, left, height, width)."""
    windows = random_crops(draws[None], np.array([height]), np.array([width]), area, ratio)
    top, left, h, w = windows[0].tolist()
    return top, left, h, w


def _between(draws: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return bounds[0] + draws * (bounds[1] - bounds[0])


def _round(values: np.ndarray) -> np.ndarray:
    return np.floor(values + 0.5)


def flips(draws: np.ndarray) -> np.ndarray:
    """Whether to mirror: (..., DRAWS) → (...) bool, true for half."""
    return draws[..., -1] < 0.5


def eval_window(height: int, width: int, shorter: int, size: int) -> tuple[int, int, int, int]:
    """Resized (height, width) and the (top, left) of the centre crop in it.

    torchvision: Resize(shorter) truncates the longer side, CenterCrop rounds halves to even.
    """
    if height <= width:
        new_h, new_w = shorter, int(shorter * width / height)
    else:
        new_h, new_w = int(shorter * height / width), shorter
    return new_h, new_w, round((new_h - size) / 2), round((new_w - size) / 2)

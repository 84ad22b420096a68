"""Which image is where, and how it is cropped: pure functions of (seed, epoch, position).

Position p of an epoch is the p-th image of that epoch's order. Everything random comes straight
from the words of the counter-based generator Philox, whose stream is fixed across NumPy versions,
so nothing here has a state and any position can be asked for on its own.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

ATTEMPTS = 10
"""Random crops that are tried before the central one (torchvision: RandomResizedCrop)."""
DRAWS = 2 * ATTEMPTS + 3
"""Uniform numbers per image: the area and the ratio of each attempt, top, left, flip."""

_WORDS_PER_COUNT = 4  # Philox makes four 64-bit words from each value of its counter.
_COUNTS_PER_IMAGE = -(-DRAWS // _WORDS_PER_COUNT)
_ORDER, _CROPS = 0, 1


def _philox(seed: int, epoch: int, purpose: int, counter: int = 0) -> np.random.Philox:
    """The stream of words for one purpose in one epoch, from `counter` on."""
    key = np.array([seed, 2 * epoch + purpose], np.uint64)
    return np.random.Philox(key=key, counter=counter)


@lru_cache(maxsize=2)
def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation (num_images,) int64, read-only, its own for each epoch and each seed."""
    words = _philox(seed, epoch, _ORDER).random_raw(num_images)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False
    return order


def crop_draws(seed: int, epoch: int, start: int, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for `count` positions from `start` on: (count, DRAWS) float64."""
    generator = _philox(seed, epoch, _CROPS, counter=start * _COUNTS_PER_IMAGE)
    words = generator.random_raw(count * _COUNTS_PER_IMAGE * _WORDS_PER_COUNT)
    return (words.reshape(count, -1)[:, :DRAWS] >> np.uint64(11)) * 2.0**-53


def crop_choices(
    draws: np.ndarray, area: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Turn the first draws into the shares of the area (uniform) and the ratios (log-uniform).

    Args:
      draws: (..., DRAWS) float64, from `crop_draws`.
      area: smallest and largest share of the image's area.
      ratio: smallest and largest width / height.

    Returns:
      (..., DRAWS) float64; the last three columns (top, left, flip) are still uniform in [0, 1).
    """
    choices = draws.copy()
    low, high = np.log(ratio)
    choices[..., :ATTEMPTS] = area[0] + draws[..., :ATTEMPTS] * (area[1] - area[0])
    shapes = slice(ATTEMPTS, 2 * ATTEMPTS)
    choices[..., shapes] = np.exp(low + draws[..., shapes] * (high - low))
    return choices


def random_crop(
    draws: np.ndarray,
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """The training crop (top, left, height, width) of one image, as torchvision chooses it.

    The first attempt that fits into the image is taken, at a uniformly chosen place; if none does,
    the largest central crop whose ratio is allowed. Rounding is floor(x + 0.5) throughout.

    Args:
      draws: (DRAWS,) float64, this image's row of `crop_draws`.
      height, width: of the image, in pixels.
      area, ratio: as for `crop_choices`.
    """
    choices = crop_choices(draws, area, ratio)
    areas = choices[:ATTEMPTS] * (height * width)
    ratios = choices[ATTEMPTS : 2 * ATTEMPTS]
    widths = np.floor(np.sqrt(areas * ratios) + 0.5)
    heights = np.floor(np.sqrt(areas / ratios) + 0.5)
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    if fits.any():
        first = int(np.argmax(fits))
        h, w = int(heights[first]), int(widths[first])
        return int(draws[-3] * (height - h + 1)), int(draws[-2] * (width - w + 1)), h, w
    h = max(1, min(height, int(width / ratio[0] + 0.5)))
    w = max(1, min(width, int(height * ratio[1] + 0.5)))
    return (height - h) // 2, (width - w) // 2, h, w


def is_flipped(draws: np.ndarray) -> np.ndarray:
    """Whether images with draws (..., DRAWS) are mirrored: (...) bool, half of them."""
    return np.asarray(draws[..., -1] < 0.5)


def eval_geometry(height: int, width: int, size: int, margin: int) -> tuple[int, int, int, int]:
    """Evaluation: what to resize to and where to crop `size` x `size` (height, width, top, left).

    The shorter side becomes size + margin, the longer one is truncated; the offset of the central
    crop is rounded half to even (torchvision: Resize and CenterCrop).
    """
    shorter = min(height, width)
    height = (size + margin) * height // shorter
    width = (size + margin) * width // shorter
    return height, width, round((height - size) / 2), round((width - size) / 2)


class Rows(NamedTuple):
    """The images of one step that one process or device delivers, pass after pass."""

    index: np.ndarray
    """(R,) int64, place in the list of files."""
    real: np.ndarray
    """(R,) bool; False marks the repeats that fill up the last evaluation step."""
    draws: np.ndarray
    """(R, DRAWS) float64, for training."""


@dataclass(frozen=True)
class Steps:
    """How the steps of a split pick their images.

    Training permutes the images anew in each epoch and leaves out those that do not fill a step;
    evaluation takes them in order and fills the last step up with repeats.
    """

    num_images: int
    passes: int
    """Forward passes per step (A)."""
    images_per_pass: int
    """Images of one forward pass over all devices (N)."""
    seed: int
    train: bool

    @property
    def images_per_step(self) -> int:
        """A x N."""
        return self.passes * self.images_per_pass

    @property
    def num_steps(self) -> int:
        """Steps of one pass over the split."""
        whole, rest = divmod(self.num_images, self.images_per_step)
        return whole if self.train or not rest else whole + 1

    def numbers(self, start: int) -> range:
        """The steps from `start` to the end of the split; in training, practically for ever."""
        return range(start, 2**62 if self.train else self.num_steps)

    def rows(self, step: int, columns: slice) -> Rows:
        """The images at `columns` of each forward pass of a step; R = A x number of columns."""
        epoch, step = divmod(step, self.num_steps) if self.train else (0, step)
        count = columns.stop - columns.start
        first = step * self.images_per_step + columns.start
        starts = [first + a * self.images_per_pass for a in range(self.passes)]
        positions = np.concatenate([np.arange(start, start + count) for start in starts])
        draws = np.concatenate([crop_draws(self.seed, epoch, start, count) for start in starts])
        if self.train:
            index = epoch_order(self.num_images, self.seed, epoch)[positions]
            return Rows(index, np.ones(len(positions), bool), draws)
        return Rows(positions % self.num_images, positions < self.num_images, draws)

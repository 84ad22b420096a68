"""AutoAugment and RandAugment as tables of the operations' parameters, computed once in NumPy.

Each operation is one row of `Operations`; augment.py applies rows to images on the device. The
results are defined by Pillow (`ImageOps`, `ImageEnhance`, `Image.transform`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any
"""A NumPy array, or a JAX array in a step."""
BINS = 31
"""RandAugment's magnitudes are 0 to BINS - 1."""
_GREY = np.arange(256)
_ONE = 1 << 16
"""1.0 in Pillow's fixed-point coordinates."""

LUT, AUTOCONTRAST, EQUALIZE = 0, 1, 2
"""Where the table of grey levels comes from: `Operations.lut`, or the image's histogram."""


class Operations(NamedTuple):
    """The parameters of T operations on S × S images."""

    affine: Array
    """(T, 6) int32: source x = (a x + b y + c) >> 16, then the same for y; nearest pixel."""
    shift: Array
    """(T, S) int32: how far each row is shifted, in whole pixels."""
    fraction: Array
    """(T, S) float32 in [0, 1): the rest of the shift, by bicubic interpolation."""
    vertical: Array
    """(T,) bool: shift columns, not rows."""
    lut: Array
    """(T, 256) int32: the new grey level of each grey level."""
    source: Array
    """(T,) int32, the source of the table: LUT, AUTOCONTRAST or EQUALIZE."""
    contrast: Array
    """(T,) float32 factor; as for the next two, 1 leaves the image unchanged."""
    color: Array
    """(T,) float32."""
    sharpness: Array
    """(T,) float32."""


class Choice(NamedTuple):
    """One operation of a policy, applied with a probability."""

    name: str
    probability: float
    magnitude: float
    """Its meaning depends on the operation; see `_MAKE`."""


class Policy(NamedTuple):
    """Operations that are applied one after another."""

    choices: list[list[Choice]]
    """The candidates of each round; all rounds have the same number."""
    together: bool
    """Whether all rounds use the candidate with the same index, as in the pairs of AutoAugment."""

    def operations(self, size: int) -> Operations:
        """Row 0 changes nothing; each candidate has two rows, one per sign (see `first_rows`)."""
        rows = [_unchanged(size)]
        for candidates in self.choices:
            for choice in candidates:
                for sign in (1, -1):
                    rows.append(_MAKE[choice.name](size, choice.magnitude, sign))
        return Operations(*(np.stack(part) for part in zip(*rows, strict=True)))

    @property
    def probabilities(self) -> np.ndarray:
        """(rounds, candidates) float32: the probability that a drawn candidate is applied."""
        rows = [[choice.probability for choice in candidates] for candidates in self.choices]
        return np.array(rows, np.float32)

    @property
    def first_rows(self) -> np.ndarray:
        """(rounds, candidates) int32: the row with positive sign; the next has negative sign."""
        count = len(self.choices) * len(self.choices[0])
        return (1 + 2 * np.arange(count, dtype=np.int32)).reshape(len(self.choices), -1)


# ---- the policies ------------------------------------------------------------------------------

_PAIRS = """
equalize 0.8 1     shearY 0.8 4
color 0.4 9        equalize 0.6 3
color 0.4 1        rotate 0.6 8
solarize 0.8 3     equalize 0.4 7
solarize 0.4 2     solarize 0.6 2
color 0.2 0        equalize 0.8 8
equalize 0.4 8     solarizeadd 0.8 3
shearX 0.2 9       rotate 0.6 8
color 0.6 1        equalize 1.0 2
invert 0.4 9       rotate 0.6 0
equalize 1.0 9     shearY 0.6 3
color 0.4 7        equalize 0.6 0
posterize 0.4 6    autocontrast 0.4 7
solarize 0.6 8     color 0.6 9
solarize 0.2 4     rotate 0.8 9
rotate 1.0 7       translateY 0.8 9
shearX 0.0 0       solarize 0.8 4
shearY 0.8 0       color 0.6 4
color 1.0 0        rotate 0.6 2
equalize 0.8 4     equalize 0.0 8
equalize 1.0 4     autocontrast 0.6 2
shearY 0.4 7       solarizeadd 0.6 7
posterize 0.8 2    solarize 0.6 10
solarize 0.6 8     equalize 0.6 1
color 0.8 6        rotate 0.4 5
"""
"""AutoAugment's policy for ImageNet, as the original has it: two operations in each row, with
probability and level."""

_LEVELS: dict[str, Callable[[int], float]] = {
    "shearX": lambda level: 0.03 * level,
    "shearY": lambda level: 0.03 * level,
    "translateY": lambda level: 25.0 * level,
    "rotate": lambda level: 3.0 * level,
    "color": lambda level: 0.1 + 0.18 * level,
    "posterize": lambda level: float(np.round(0.4 * level)),
    "solarize": lambda level: 25.6 * level,
    "solarizeadd": lambda level: 11.0 * level,
    "equalize": lambda _: 0.0,
    "autocontrast": lambda _: 0.0,
    "invert": lambda _: 0.0,
}
"""The original's magnitude of each level from 0 to 10. NVIDIA: autoaugment.py."""


def auto_augment() -> Policy:
    """AutoAugment (Cubuk et al. 2019) for ImageNet: one of 25 pairs of operations."""
    rounds: list[list[Choice]] = [[], []]
    for line in _PAIRS.strip().splitlines():
        words = line.split()
        for candidates, (name, probability, level) in zip(
            rounds, (words[:3], words[3:]), strict=True
        ):
            candidates.append(Choice(name, float(probability), _LEVELS[name](int(level))))
    return Policy(rounds, together=True)


def rand_augment(num_ops: int, magnitude: int, size: int) -> Policy:
    """RandAugment (Cubuk et al. 2020) with torchvision's 14 operations and ranges.

    Args:
      num_ops: operations per image.
      magnitude: 0 to BINS - 1, the same for all operations.
      size: side of the images, in pixels.
    """
    share = magnitude / (BINS - 1)
    magnitudes = {
        "identity": 0.0,
        "shearX": 0.3 * share,
        "shearY": 0.3 * share,
        "translateX": 150 / 331 * size * share,
        "translateY": 150 / 331 * size * share,
        "rotate": 30 * share,
        "brightness": 0.9 * share,
        "color": 0.9 * share,
        "contrast": 0.9 * share,
        "sharpness": 0.9 * share,
        "posterize": 8 - float(np.round(4 * share)),
        "solarize": 255 * (1 - share),
        "autocontrast": 0.0,
        "equalize": 0.0,
    }
    changes = ("brightness", "color", "contrast", "sharpness")
    candidates = [
        Choice(f"change {name}" if name in changes else name, 1.0, magnitude)
        for name, magnitude in magnitudes.items()
    ]
    return Policy([candidates] * num_ops, together=False)


# ---- the operations ----------------------------------------------------------------------------


def _unchanged(size: int) -> Operations:
    """The row that changes nothing, without the axis T."""
    return Operations(
        affine=_fixed_point((1, 0, 0, 0, 1, 0)),
        shift=np.zeros(size, np.int32),
        fraction=np.zeros(size, np.float32),
        vertical=np.bool_(False),
        lut=_GREY.astype(np.int32),
        source=np.int32(LUT),
        contrast=np.float32(1),
        color=np.float32(1),
        sharpness=np.float32(1),
    )


def _fixed_point(matrix: tuple[float, ...]) -> np.ndarray:
    """An affine map of pixel centres in Pillow's fixed-point coordinates: (6,) int32."""
    a, b, c, d, e, f = matrix
    centred = (a, b, c + a / 2 + b / 2, d, e, f + d / 2 + e / 2)
    return np.array([math.floor(v * _ONE + 0.5) for v in centred], np.int32)


def _shear(size: int, magnitude: float, sign: int, *, vertical: bool) -> Operations:
    """Shift row y by sign · magnitude · (y + 0.5) pixels; columns if `vertical`."""
    shifts = sign * magnitude * (np.arange(size) + 0.5)
    whole = np.floor(shifts)
    return _unchanged(size)._replace(
        shift=whole.astype(np.int32),
        fraction=(shifts - whole).astype(np.float32),
        vertical=np.bool_(vertical),
    )


def _rotate(size: int, degrees: float, sign: int) -> Operations:
    """Rotate counter-clockwise about the centre by sign · degrees."""
    angle = -math.radians(sign * degrees)
    cos, sin, half = round(math.cos(angle), 15), round(math.sin(angle), 15), size / 2
    start = (half - cos * half - sin * half, half + sin * half - cos * half)
    return _unchanged(size)._replace(affine=_fixed_point((cos, sin, start[0], -sin, cos, start[1])))


def _translate(size: int, pixels: float, sign: int, *, vertical: bool) -> Operations:
    by = (0.0, sign * pixels) if vertical else (sign * pixels, 0.0)
    return _unchanged(size)._replace(affine=_fixed_point((1, 0, by[0], 0, 1, by[1])))


def _levels(lut: np.ndarray) -> Callable[[int], Operations]:
    clipped = np.clip(lut, 0, 255).astype(np.int32)
    return lambda size: _unchanged(size)._replace(lut=clipped)


def _brightness(factor: float) -> np.ndarray:
    return np.float32(factor) * _GREY.astype(np.float32)


_MAKE: dict[str, Callable[[int, float, int], Operations]] = {
    "identity": lambda size, _, __: _unchanged(size),
    # magnitude: pixels per row, pixels, degrees; the sign is drawn
    "shearX": lambda size, m, sign: _shear(size, m, sign, vertical=False),
    "shearY": lambda size, m, sign: _shear(size, m, sign, vertical=True),
    "translateX": lambda size, m, sign: _translate(size, m, sign, vertical=False),
    "translateY": lambda size, m, sign: _translate(size, m, sign, vertical=True),
    "rotate": _rotate,
    # magnitude: bits that are kept, the threshold, what is added below 128
    "posterize": lambda size, m, _: _levels(_GREY & ~(2 ** (8 - int(m)) - 1))(size),
    "solarize": lambda size, m, _: _levels(np.where(m > _GREY, _GREY, 255 - _GREY))(size),
    "solarizeadd": lambda size, m, _: _levels(np.where(_GREY < 128, _GREY + int(m), _GREY))(size),
    "invert": lambda size, _, __: _levels(255 - _GREY)(size),
    "autocontrast": lambda size, _, __: _unchanged(size)._replace(source=np.int32(AUTOCONTRAST)),
    "equalize": lambda size, _, __: _unchanged(size)._replace(source=np.int32(EQUALIZE)),
    # magnitude: the factor; for "change …" what is added to or taken from 1
    "color": lambda size, m, _: _unchanged(size)._replace(color=np.float32(m)),
    "change color": lambda size, m, sign: _unchanged(size)._replace(color=np.float32(1 + sign * m)),
    "change brightness": lambda size, m, sign: _levels(_brightness(1 + sign * m))(size),
    "change contrast": lambda size, m, sign: _unchanged(size)._replace(
        contrast=np.float32(1 + sign * m)
    ),
    "change sharpness": lambda size, m, sign: _unchanged(size)._replace(
        sharpness=np.float32(1 + sign * m)
    ),
}
"""For each operation, the function that makes its row from image side, magnitude and sign."""

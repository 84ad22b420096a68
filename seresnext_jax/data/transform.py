"""Crops a decoded image to the square that the network sees, in training and in evaluation.

Each crop has two methods: `numbers` computes the windows of many images at once, as input for DALI,
and `__call__` crops one image with Pillow, using `numbers`. The DALI backends are tested against
Pillow.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from seresnext_jax.config import DataConfig, Interpolation
from seresnext_jax.data.images import check_pixels

ATTEMPTS = 10
"""Attempts at a random crop before the centre is used (torchvision's RandomResizedCrop)."""
DRAWS = 2 * ATTEMPTS + 3
"""Uniform random numbers per training image: area and ratio of each attempt, top, left, flip."""

RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "triangular": Image.Resampling.BILINEAR,
}
"""Pillow's filters; all of them antialias when they shrink an image."""


@dataclass(frozen=True)
class TrainCrop:
    """A random window, resized, and if `flip` is set, mirrored with probability 1/2."""

    config: DataConfig

    @property
    def image_size(self) -> int:
        """Side of the square, in pixels."""
        return self.config.image_size

    def __str__(self) -> str:
        """The options that determine the pixels. Do not change this text: the fingerprints in
        checkpoints depend on it."""
        names = ["image_size", "eval_margin", "crop_area", "crop_ratio", "flip"]
        if RESAMPLING[self.config.interpolation] is not Image.Resampling.BILINEAR:
            names += ["interpolation"]
        options = ", ".join(f"{name}={getattr(self.config, name)!r}" for name in names)
        return f"Transform(split='train', {options})"

    @property
    def interpolation(self) -> Interpolation:
        """How the window is resized."""
        return self.config.interpolation

    def numbers(
        self, sizes: np.ndarray, draws: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The windows to crop, and whether to mirror.

        Like torchvision's RandomResizedCrop.get_params, but rounds halves up. It tries `ATTEMPTS`
        windows with an area uniform in `crop_area` times the image's, and width / height
        log-uniform in `crop_ratio`. The first window that fits is placed uniformly. If none fits,
        the largest centred window with an allowed ratio is used.

        Args:
          sizes: (R, 2) height and width of the images, in pixels.
          draws: (R, DRAWS) uniforms in [0, 1).

        Returns:
          (R, 2) top and left, (R, 2) height and width, (R,) flip: int64, int64, bool.
        """
        height, width = np.split(sizes.astype(np.float64), 2, axis=1)
        ratio = self.config.crop_ratio
        areas = height * width * _between(draws[:, :ATTEMPTS], self.config.crop_area)
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
        free = np.concatenate([height - h, width - w], axis=1)
        start = np.where(found, draws[:, 2 * ATTEMPTS : 2 * ATTEMPTS + 2] * (free + 1), free / 2)
        shape = np.concatenate([h, w], axis=1)
        flip = (draws[:, -1] < 0.5) & self.config.flip
        return np.floor(start).astype(np.int64), np.floor(shape).astype(np.int64), flip

    def largest(self, sizes: np.ndarray) -> np.ndarray:
        """(R, 2) height and width of the largest intermediate images: here the decoded ones."""
        return sizes

    def __call__(self, image: Image.Image, draws: np.ndarray) -> np.ndarray:
        """Crop, resize (antialiased), perhaps mirror: (S, S, 3) uint8, S = image_size.

        Args:
          image: RGB.
          draws: (DRAWS,) uniforms in [0, 1).
        """
        sizes = np.array([[image.height, image.width]])
        start, shape, flip = self.numbers(sizes, draws[None])
        (top, left), (height, width) = start[0].tolist(), shape[0].tolist()
        image = image.crop((left, top, left + width, top + height))
        side = self.image_size
        image = image.resize((side, side), RESAMPLING[self.interpolation])
        if flip[0]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)


@dataclass(frozen=True)
class CentreCrop:
    """The shorter side resized to image_size + eval_margin, then the centre cropped."""

    image_size: int
    eval_margin: int
    interpolation: Interpolation = "bilinear"

    def numbers(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The windows to crop, and the sizes of the resized images that they are cropped from.

        torchvision: Resize truncates the longer side, CenterCrop rounds halves to even.

        Args:
          sizes: (R, 2) height and width of the images, in pixels.

        Returns:
          (R, 2) top and left, (R, 2) height and width; int64.
        """
        shorter = self.image_size + self.eval_margin
        resized = shorter * sizes.astype(np.int64) // sizes.min(axis=1, keepdims=True)
        return np.rint((resized - self.image_size) / 2).astype(np.int64), resized

    def largest(self, sizes: np.ndarray) -> np.ndarray:
        """(R, 2) height and width of the largest intermediate images: decoded or resized."""
        decoded = sizes.min(axis=1, keepdims=True) > self.image_size + self.eval_margin
        return np.where(decoded, sizes, self.numbers(sizes)[1])

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Resize (antialiased) and crop: (S, S, 3) uint8 with S = image_size.

        Args:
          image: RGB.

        Raises:
          BadImage: the resized image would have more than MAX_PIXELS.
        """
        sizes = np.array([[image.height, image.width]])
        check_pixels(*self.largest(sizes)[0].tolist())
        start, resized = self.numbers(sizes)
        (top, left), (height, width) = start[0].tolist(), resized[0].tolist()
        image = image.resize((width, height), RESAMPLING[self.interpolation])
        return np.asarray(image.crop((left, top, left + self.image_size, top + self.image_size)))


def _between(draws: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return bounds[0] + draws * (bounds[1] - bounds[0])


def _round(values: np.ndarray) -> np.ndarray:
    return np.floor(values + 0.5)

"""Converts pixels of any kind to 8-bit RGB; refuses them if their range is not known."""

import numpy as np
from PIL import Image

WHITE_16 = 65535
_BITS, _PHOTOMETRIC = 258, 262
"""TIFF tags."""
_WHITE_IS_ZERO = 0
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns a photo upright, by its EXIF orientation."""
SWAPPING = (5, 6, 7, 8)
"""The EXIF orientations for which this operation swaps height and width."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image as 8-bit RGB.

    Alpha is dropped; palettes and CMYK are converted with Pillow's formulas; 1-bit pixels become
    black and white. 16-bit grey (in TIFF also 12-bit) is scaled, and so are floats if all of them
    are in [0, 1].

    Raises:
      ValueError: the range of the values is not known.
    """
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        return _grey(np.asarray(image).astype(np.float32) / _white(image), image)
    if image.mode == "F":
        values = np.asarray(image)
        if not (values >= 0).all() or not (values <= 1).all():
            raise ValueError("floating-point values outside [0, 1]: save it with 8 or 16 bits")
        return _grey(values, image)
    if image.mode == "I":
        raise ValueError("32-bit or signed values of unknown range: save it with 8 or 16 bits")
    if image.mode == "RGB":  # `convert` would copy it
        image.load()
        return image
    return image.convert("RGB")


def _white(image: Image.Image) -> int:
    """The largest value of 16-bit grey; some TIFF files use only 12 of the bits."""
    if image.format == "TIFF" and _tag(image, _BITS) == (12,):
        return 2**12 - 1
    return WHITE_16


def _grey(values: np.ndarray, image: Image.Image) -> Image.Image:
    """Grey values in [0, 1] as an RGB image, rounded to 8 bits."""
    if image.format == "TIFF" and _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 1 - values
    return Image.fromarray((255 * values + 0.5).astype(np.uint8)).convert("RGB")


def _tag(image: Image.Image, number: int) -> object:
    return getattr(image, "tag_v2", {}).get(number)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 if it has none.

    Pillow always turns TIFF upright itself, because the orientation is a part of that format.
    """
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data does not make an image bad
        return 1
    return value if value in _UPRIGHT else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned upright, given its EXIF orientation."""
    return image if orientation == 1 else image.transpose(_UPRIGHT[orientation])

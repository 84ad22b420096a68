"""A contact sheet: the worst mistakes of an evaluation in one image."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seresnext_jax.errors import UserError, printable

COLUMNS = 6
NUM_IMAGES = 4 * COLUMNS
"""Images on a full sheet."""
_SIDE = 224
"""Width and height of an image on the sheet, in pixels."""
_GAP, _LINE, _FONT_SIZE = 12, 18, 13
_PAPER, _INK, _RIGHT, _WRONG = "#ffffff", "#555555", "#1a7f37", "#b42318"


class Cell(NamedTuple):
    """An image and the lines below it."""

    pixels: np.ndarray
    """(S, S, 3) uint8."""
    label: str
    """The true class and its probability."""
    predicted: str
    """The class that was predicted and its probability."""
    name: str
    """The name of the image."""


def write_contact_sheet(path: Path, cells: Sequence[Cell]) -> None:
    """Draw the cells row by row, and write the sheet in the format of the file's suffix.

    Raises:
      UserError: the file can't be written.
    """
    width, height = _SIDE + _GAP, _SIDE + 3 * _LINE + _GAP
    rows = -(-len(cells) // COLUMNS)
    size = (_GAP + min(COLUMNS, len(cells)) * width, _GAP + rows * height)
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), _font()
    for i, cell in enumerate(cells):
        row, column = divmod(i, COLUMNS)
        x, y = _GAP + column * width, _GAP + row * height
        sheet.paste(Image.fromarray(cell.pixels).resize((_SIDE, _SIDE)), (x, y))
        lines = (
            (f"true: {cell.label}", _RIGHT),
            (f"predicted: {cell.predicted}", _WRONG),
            (cell.name, _INK),
        )
        for number, (text, colour) in enumerate(lines):
            at = (x, y + _SIDE + 2 + number * _LINE)
            draw.text(at, _cut(printable(text), font), fill=colour, font=font)
    try:
        sheet.save(path)
    except OSError as error:
        raise UserError(
            f"{printable(path)} can't be written ({error.strerror}): free space there or change "
            "its permissions"
        ) from error


def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib's font, which covers the scripts of many languages."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), _FONT_SIZE)


def _cut(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, with an ellipsis in the middle if it is wider than an image."""
    if font.getlength(text) <= _SIDE:
        return text
    kept = len(text) - 1
    while font.getlength(_without_middle(text, kept)) > _SIDE:
        kept -= 1
    return _without_middle(text, kept)


def _without_middle(text: str, kept: int) -> str:
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"

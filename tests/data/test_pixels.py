"""Pixels of every kind: scaled or refused, turned, and the same with Pillow and with DALI."""

import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from seresnext_jax.config import Backend, DataConfig
from seresnext_jax.data import images
from seresnext_jax.data import reader as reader_module
from seresnext_jax.data.images import BadImage, decode_rgb, open_rgb
from seresnext_jax.data.open import Split
from tests.data.loaders import open_split

CONFIG = DataConfig(image_size=16, eval_margin=4, workers=1)


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth random colour image."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


GREY = np.asarray(photo().convert("L"))
Writer = Callable[[Path], object]


def tiff(path: Path, pixels: bytes, bits: int, photometric: int) -> None:
    """An uncompressed grey TIFF of GREY's size, little-endian."""
    height, width = GREY.shape
    data = 8 + 2 + 8 * 12 + 4
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric}
    entries |= {273: data, 278: height, 279: len(pixels)}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4) + pixels)


def twelve_bits(path: Path) -> None:
    values = np.rint(GREY.astype(float).ravel() / 255 * 4095).astype(int)
    first, second = values[::2], values[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
    tiff(path, packed.astype(np.uint8).tobytes(), 12, 1)


def pgm(path: Path) -> None:
    head = f"P5 {GREY.shape[1]} {GREY.shape[0]} 65535\n".encode()
    path.write_bytes(head + (GREY.astype(np.uint16) * 257).astype(">u2").tobytes())


def png16(path: Path) -> None:
    """RGB of 16 bits, which Pillow can't write."""
    pixels = np.asarray(photo()).astype(np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts.items()
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def ppm(head: str) -> Writer:
    white = int(head.split()[-1])
    pixels = np.rint(np.asarray(photo()).astype(float) / 255 * white).astype(int)
    binary = pixels.astype(np.uint8).tobytes()
    text = " ".join(map(str, pixels.ravel())).encode()
    body = binary if head.startswith("P6") else text
    return lambda path: path.write_bytes(head.encode() + b"\n" + body)


def save(image: Image.Image, **options: object) -> Writer:
    return lambda path: image.save(path, **options)


def array(pixels: np.ndarray) -> Writer:
    return save(Image.fromarray(pixels))


wide = GREY.astype(np.uint16) * 257
GREYS: dict[str, Writer] = {
    "8 bits.png": array(GREY),
    "16 bits.png": array(wide),
    "16 bits.tif": array(wide),
    "16 bits, big-endian.tif": lambda path: array(wide.astype(">u2"))(path),
    "16 bits, white is 0.tif": lambda path: tiff(path, (65535 - wide).tobytes(), 16, 0),
    "12 bits.tif": twelve_bits,
    "16 bits.pgm": pgm,
    "float.tif": array(GREY.astype(np.float32) / 255),
    "float.pfm": array(GREY.astype(np.float32) / 255),
    "16 bits.jp2": array(wide),
}
"""The same grey picture; Pillow's own conversion clips all but the first."""


@pytest.mark.parametrize("name", GREYS)
def test_grey_of_every_depth_is_the_same_picture(tmp_path: Path, name: str) -> None:
    GREYS[name](tmp_path / name)
    got = np.asarray(open_rgb(tmp_path / name)).astype(int)
    assert np.abs(got - GREY[..., None]).max() <= (1 if name == "12 bits.tif" else 0)


REFUSED: dict[str, Writer] = {
    "float above 1.tif": array(GREY.astype(np.float32)),
    "float below 0.tif": array(GREY.astype(np.float32) / 255 - 0.5),
    "not a number.tif": array(np.where(GREY > 99, GREY / 255, np.nan).astype(np.float32)),
    "32 bits.tif": array(GREY.astype(np.int32) * 257),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_of_unknown_range_are_refused_and_the_fix_works(tmp_path: Path, name: str) -> None:
    REFUSED[name](tmp_path / name)
    with pytest.raises(BadImage, match="save it with 8 or 16 bits"):
        open_rgb(tmp_path / name)
    array(GREY.astype(np.uint16) * 257)(tmp_path / name)
    assert np.array_equal(np.asarray(open_rgb(tmp_path / name))[..., 0], GREY)


def with_alpha(mode: str) -> Image.Image:
    image = photo()
    image.putalpha(Image.fromarray(GREY))
    return image.convert(mode)


def test_what_other_modes_become(tmp_path: Path) -> None:
    """Alpha is dropped, 1 bit is black and white, palettes and CMYK are converted."""
    one = photo().convert("1")
    kinds = {
        "rgba.png": (with_alpha("RGBA"), photo()),
        "la.png": (with_alpha("LA"), photo().convert("L")),
        "one.png": (one, one.convert("L")),
        "palette.gif": (photo().quantize(16), photo().quantize(16)),
        "cmyk.tif": (photo().convert("CMYK"), photo()),
        "ycbcr.tif": (photo().convert("YCbCr"), photo().convert("YCbCr")),
    }
    for name, (stored, expected) in kinds.items():
        stored.save(tmp_path / name)
        got = np.asarray(open_rgb(tmp_path / name))
        assert np.array_equal(got, np.asarray(expected.convert("RGB"))), name
    assert set(np.unique(np.asarray(open_rgb(tmp_path / "one.png")))) == {0, 255}


# ---- equal in the backends ---------------------------------------------------------------------

MORE: dict[str, Writer] = {
    "la.tif": save(with_alpha("LA")),
    "la.png": save(with_alpha("LA")),
    "one.png": save(photo().convert("1")),
    "one.tif": save(photo().convert("1")),
    "one.bmp": save(photo().convert("1")),
    "palette.bmp": save(photo().quantize(16)),
    "palette and alpha.png": save(photo().quantize(16), transparency=3),
    "rgb, 16 bits.png": png16,
    "cmyk.tif": save(photo().convert("CMYK")),
    "turned.tif": lambda path: turned(path, 6),
    "rgba.webp": save(with_alpha("RGBA"), lossless=True),
    "animated.webp": save(photo(), lossless=True, save_all=True, append_images=[photo()]),
    "white is 100.ppm": ppm("P6 60 40 100"),
    "text.ppm": ppm("P3 60 40 255"),
    "binary.ppm": ppm("P6 60 40 255"),
}


def show(
    tmp_path: Path, backend: Backend, split: Split = "val", *, upright: bool = False
) -> np.ndarray:
    data = replace(CONFIG, root=str(tmp_path), backend=backend, exif_orientation=upright)
    source = open_split(data, split, n=1, num_classes=1)
    batch = next(iter(source.batches(0)))
    source.close()
    assert int(batch.mask.sum()) == 1
    return np.asarray(batch.images[0, 0]).astype(int)


def write(tmp_path: Path, name: str, writer: Writer) -> Path:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        writer(tmp_path / split / "a" / name)
    return tmp_path / "val" / "a" / name


@pytest.mark.filterwarnings("error:Pillow reads a batch")
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", GREYS | MORE)
def test_dali_shows_what_pillow_shows(tmp_path: Path, name: str, split: Split) -> None:
    write(tmp_path, name, (GREYS | MORE)[name])
    difference = np.abs(show(tmp_path, "dali-cpu", split) - show(tmp_path, "folder", split))
    assert difference.mean() <= 1.0


# ---- EXIF orientation --------------------------------------------------------------------------


def turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    photo().save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_photos_are_turned_upright(
    tmp_path: Path, name: str, orientation: int, split: Split
) -> None:
    path = write(tmp_path, name, lambda path: turned(path, orientation))
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(np.asarray(decode_rgb(path, lambda x: x, upright=True)), upright)
    one, other = (show(tmp_path, b, split, upright=True) for b in ("dali-cpu", "folder"))
    assert np.abs(one - other).mean() <= 1.0
    if orientation == 6 and name != "a.tif":  # which Pillow always turns
        assert np.abs(one - show(tmp_path, "folder", split)).mean() > 5


def test_an_orientation_in_xmp_only_is_equal_in_the_backends(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    path = write(tmp_path, "a.jpg", save(photo(), quality=95, xmp=xmp))
    assert decode_rgb(path, lambda x: x.size, upright=True) == (40, 60)
    one, other = (show(tmp_path, b, upright=True) for b in ("dali-cpu", "folder"))
    assert np.abs(one - other).mean() <= 1.0


def test_damaged_exif_data_is_no_reason_to_refuse_a_photo(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jpg", save(photo(), exif=b"Exif\0\0nonsense"))
    assert decode_rgb(path, lambda x: x.size, upright=True) == (60, 40)
    show(tmp_path, "dali-cpu", upright=True)


def test_the_option_is_in_the_fingerprint_only_if_it_is_on(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", save(photo()))
    data = replace(CONFIG, root=str(tmp_path), backend="folder")
    off, on = (
        open_split(replace(data, exif_orientation=upright), "val", n=1, num_classes=1).fingerprint
        for upright in (False, True)
    )
    assert off != on


# ---- large images ------------------------------------------------------------------------------


def large_png(path: Path, width: int, height: int) -> None:
    """The header alone."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    end = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + chunk + struct.pack(">I", zlib.crc32(chunk)) + end
    )


def test_a_photo_of_108_megapixels_is_decoded(tmp_path: Path) -> None:
    Image.new("L", (12000, 9000), 77).save(tmp_path / "a.jpg")
    small = decode_rgb(tmp_path / "a.jpg", lambda image: image.resize((2, 2)))
    assert np.asarray(small).ravel().tolist() == [77] * 12


def test_a_larger_one_is_refused_without_being_decoded(tmp_path: Path) -> None:
    large_png(tmp_path / "a.png", 20000, 9000)
    with pytest.raises(BadImage, match="20000 x 9000 pixels are more than 134217728"):
        open_rgb(tmp_path / "a.png")


def test_images_are_decoded_at_once_as_far_as_they_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images of 2,400 pixels where there is room for two."""
    monkeypatch.setattr(images, "_memory", images._PixelBudget(5000))
    save(photo())(tmp_path / "a.png")
    inside, release, most = threading.Semaphore(0), threading.Event(), []
    running: list[int] = []

    def use(image: Image.Image) -> None:
        running.append(1)
        most.append(len(running))
        inside.release()
        assert release.wait(60)
        running.pop()

    threads = [
        threading.Thread(target=decode_rgb, args=(tmp_path / "a.png", use)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert inside.acquire(timeout=60) and inside.acquire(timeout=60)
    assert not inside.acquire(timeout=0.05)
    release.set()
    for thread in threads:
        thread.join()
    assert max(most) == 2 and len(most) == 3


def test_dali_leaves_large_images_to_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.png", save(photo()))
    expected = show(tmp_path, "folder")
    decoded: list[str] = []

    def recording(path: str, *args: object, **options: object) -> object:
        decoded.append(path)
        return decode_rgb(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(reader_module, "decode_rgb", recording)
    assert np.abs(show(tmp_path, "dali-cpu") - expected).mean() <= 1 and not decoded
    monkeypatch.setattr(reader_module, "MAX_DALI_PIXELS", 1000)
    assert np.array_equal(show(tmp_path, "dali-cpu"), expected) and decoded

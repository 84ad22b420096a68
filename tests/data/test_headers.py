"""Sizes and kinds of images from their headers: the quick way must say what Pillow says."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base

from seresnext_jax.data.headers import (
    AS_PILLOW,
    FACTS,
    JPEG,
    KNOWN,
    TURN_KNOWN,
    WHOLE,
    file_state,
    has_jpeg_end,
    jpeg_facts,
    parse_jpeg,
    read_header,
)
from seresnext_jax.data.images import BadImage, Member
from seresnext_jax.errors import UserError


def encode(mode: str, kind: str, size: tuple[int, int] = (37, 23), **options: Any) -> bytes:
    """An image as a file."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    return exif


def frame(numbers: str) -> bytes:
    """A JPEG that begins with a frame: marker, length, bits, height, width, layers."""
    return b"\xff\xd8\xff" + bytes.fromhex(numbers) + bytes(20)


JPEGS: dict[str, bytes] = {
    "colour": encode("RGB", "jpeg"),
    "grey": encode("L", "jpeg"),
    "cmyk": encode("CMYK", "jpeg"),
    "progressive": encode("RGB", "jpeg", progressive=True),
    "restarts": encode("RGB", "jpeg", restart_marker_rows=1),
    "comment": encode("RGB", "jpeg", comment=b"\xff\xc0\x00\x11\x08 not a frame"),
    "colour profile": encode("RGB", "jpeg", icc_profile=bytes(2000)),
    "large": encode("RGB", "jpeg", size=(400, 300), quality=50),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_usual_jpeg_is_read_without_pillow(name: str) -> None:
    data = JPEGS[name]
    with Image.open(io.BytesIO(data)) as image:
        expected = image.height, image.width
    found = parse_jpeg(data[:4096])
    assert found is not None
    assert found[:2] == expected
    assert found[2] == KNOWN | AS_PILLOW | JPEG | TURN_KNOWN and found[3] == 1


@pytest.mark.parametrize("name", JPEGS)
def test_a_cut_header_gives_the_same_or_nothing(name: str) -> None:
    whole = parse_jpeg(JPEGS[name])
    for end in range(min(len(JPEGS[name]), 3000)):
        assert parse_jpeg(JPEGS[name][:end]) in (None, whole)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode("RGB", "png"), id="png"),
        pytest.param(
            b"\xff\xd8\xff\xc3\x00\x11\x08\x00\x05\x00\x06\x03" + bytes(20), id="lossless"
        ),
        pytest.param(b"\xff\xd8\xff\xc0\x00\x11\x0c\x00\x05\x00\x06\x03" + bytes(20), id="12 bits"),
        pytest.param(
            b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x00\x00\x06\x03" + bytes(20), id="no height"
        ),
        pytest.param(
            b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x05\x00\x06\x02" + bytes(20), id="2 layers"
        ),
        pytest.param(b"\xff\xd8" + b"\xff\xda" + bytes(20), id="pixels without a frame"),
        pytest.param(b"\xff\xd8" + bytes(20), id="no marker"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_not_usual_is_left_to_pillow(data: bytes) -> None:
    assert parse_jpeg(data) is None


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_orientation_is_only_read_where_it_matters(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encode("RGB", "jpeg", exif=turned(orientation)))
    height, width, flags, _ = read_header(str(path), with_turn=False)
    assert (height, width) == (23, 37) and not flags & TURN_KNOWN
    *size, flags, turn = read_header(str(path), with_turn=True)
    assert size == [23, 37] and flags & TURN_KNOWN and turn == orientation


def test_a_size_behind_a_long_header_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encode("RGB", "jpeg", icc_profile=bytes(60_000)))
    assert parse_jpeg(path.read_bytes()[:4096]) is None
    assert read_header(str(path), with_turn=False)[:2] == (23, 37)


def test_a_member_of_a_shard_is_read_as_a_file_is(tmp_path: Path) -> None:
    for name, data in {**JPEGS, "png": encode("RGBA", "png"), "gif": encode("P", "gif")}.items():
        path = tmp_path / name
        path.write_bytes(data)
        for with_turn in (False, True):
            one = read_header(str(path), with_turn=with_turn)
            assert read_header(Member(name, data), with_turn=with_turn) == one
        assert has_jpeg_end(Member(name, data)) == has_jpeg_end(str(path)) == (name in JPEGS)


def test_the_facts_of_jpegs_are_those_of_their_headers(tmp_path: Path) -> None:
    cut = JPEGS["large"][:-9]
    files = {**JPEGS, "cut": cut, "png": encode("RGB", "png"), "text": b"text", "empty": b""}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "huge").write_bytes(frame("c000110843005000 03"))
    names = [*files, "pipe", "folder", "huge", "missing"]
    paths = [os.fsencode(tmp_path / name) for name in names]
    for with_end in (False, True):
        facts = dict(zip(names, jpeg_facts(paths, with_end=with_end), strict=True))
        for name in (*JPEGS, "cut"):
            expected = list(read_header(str(tmp_path / name), with_turn=True))
            expected[2] |= WHOLE * (with_end and name != "cut")
            assert facts[name].tolist() == (*expected, *file_state(str(tmp_path / name)))
        for name in ("png", "text", "empty", "pipe", "folder", "huge", "missing"):
            assert facts[name] == np.zeros((), FACTS), name


@pytest.mark.parametrize("seed", range(40))
def test_any_jpeg_has_the_size_that_pillow_reads(seed: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    options: dict[str, Any] = {
        "progressive": bool(draw.integers(2)),
        "restart_marker_rows": int(draw.integers(3)),
        "comment": draw.bytes(int(draw.integers(5000))),
        "icc_profile": draw.bytes(int(draw.integers(3000))),
        "dpi": (72, 72),
        "quality": int(draw.integers(1, 96)),
        "exif": turned(int(draw.integers(1, 9))) if draw.integers(2) else b"",
    }
    width, height = draw.integers(1, 300, 2).tolist()
    data = encode(str(draw.choice(["L", "RGB", "CMYK"])), "jpeg", (width, height), **options)
    (tmp_path / "x.jpg").write_bytes(data)
    (facts,) = jpeg_facts([os.fsencode(tmp_path / "x.jpg")], with_end=True)
    assert facts["flags"] == 0 or (facts["height"], facts["width"]) == (height, width)
    assert read_header(str(tmp_path / "x.jpg"), with_turn=True)[:2] == (height, width)


def test_too_many_open_files_are_no_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match="Too many open files: raise the limit .ulimit -n"):
        read_header("x.jpg", with_turn=False)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xd8\xff\xe0")
    for source in (str(tmp_path / "x"), Member("x", b"text"), Member("x", b"")):
        with pytest.raises(BadImage, match="not an image"):
            read_header(source, with_turn=False)
    with pytest.raises(BadImage, match="No such file"):
        file_state(str(tmp_path / "y"))
    with pytest.raises(BadImage, match="not a file"):
        file_state(str(tmp_path))

"""The Pillow backend: kinds of images, bad files, resuming, layout, sharding."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seresnext_jax.config import DataConfig
from seresnext_jax.data.classes import check_train
from seresnext_jax.data.images import BadImage, open_rgb
from seresnext_jax.data.index import open_index
from seresnext_jax.data.open import Split
from seresnext_jax.data.reader import ImageReader
from seresnext_jax.data.transform import TrainCrop
from seresnext_jax.errors import UserError
from tests.data.loaders import list_images, open_split, spoil

CONFIG = DataConfig(backend="folder", image_size=16, eval_margin=4, workers=2)


def picture(width: int, height: int, seed: int) -> Image.Image:
    """A smooth random colour image."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, per_class in (("train", 6), ("val", 5)):
        for label, name in enumerate(("ant", "bee")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                picture(30 + 7 * i, 25 + 3 * i, 10 * label + i).save(folder / f"{i}.png")
    return tmp_path


def loader(root: Path, split: Split, *, devices: int = 1, a: int = 1, n: int = 4, **kw: Any) -> Any:
    return open_split(replace(CONFIG, root=str(root), **kw), split, devices=devices, a=a, n=n)


def take(source: Any, start: int, count: int) -> list[tuple[np.ndarray, ...]]:
    batches = source.batches(start)
    taken = [tuple(np.asarray(x) for x in next(batches)) for _ in range(count)]
    batches.close()
    source.close()
    return taken


def same(one: list[tuple[np.ndarray, ...]], other: list[tuple[np.ndarray, ...]]) -> bool:
    return all(
        np.array_equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in zip(a, b, strict=True)
    )


def test_kinds_of_images_become_rgb(tmp_path: Path) -> None:
    rgb = picture(20, 10, 0)
    grey = rgb.convert("L")
    wide = np.asarray(grey).astype(np.uint16) * 257
    rgba = rgb.copy()
    rgba.putalpha(grey)
    kinds = {
        "grey.png": (grey, grey),
        "rgba.png": (rgba, rgb),
        "wide.png": (Image.fromarray(wide), grey),
        "palette.png": (rgb.quantize(16), rgb.quantize(16)),
        "cmyk.tif": (rgb.convert("CMYK"), rgb),
    }
    for name, (stored, expected) in kinds.items():
        stored.save(tmp_path / name)
        got = np.asarray(open_rgb(tmp_path / name))
        assert np.array_equal(got, np.asarray(expected.convert("RGB"))), name
    rgb.save(tmp_path / "really_png.jpg", "png")
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "really_png.jpg")), np.asarray(rgb))


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture(20, 10, 0).save(tmp_path / "a.jpg", exif=exif)
    assert open_rgb(tmp_path / "a.jpg").size == (20, 10)


def make_bad(kind: str, path: Path) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "link":
        path.symlink_to("nowhere.jpg")
    elif kind == "huge":
        Image.new("1", (70000, 2000)).save(path, "png")
    else:
        picture(300, 200, 3).save(path, "jpeg", quality=95)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = ["empty", "text", "link", "huge", "truncated"]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_told_apart(tmp_path: Path, kind: str) -> None:
    make_bad(kind, tmp_path / "x.jpg")
    with pytest.raises(BadImage):
        open_rgb(tmp_path / "x.jpg")


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_policies(root: Path, kind: str) -> None:
    bad = root / "val" / "ant" / "2x.jpg"
    make_bad(kind, bad)
    with pytest.raises(UserError, match="2x.jpg"):
        take(loader(root, "val"), 0, 1)
    source = loader(root, "val", on_bad_image="skip")
    first = take(source, 0, 3)[0]
    assert source.bad_files == [str(bad)]
    assert first[2].tolist() == [[True, True, True, False]]
    assert not first[0][0, 3].any() and first[0][0, 0].any()


def test_resume_equals_an_uninterrupted_run(root: Path) -> None:
    whole = take(loader(root, "train"), 0, 7)
    assert same(take(loader(root, "train"), 4, 3), whole[4:])


def test_accumulation_and_devices_do_not_change_the_step(root: Path) -> None:
    one = take(loader(root, "train", n=8), 0, 2)
    two = take(loader(root, "train", a=2, n=4, devices=4), 0, 2)
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            assert np.array_equal(x.reshape(y.shape), y)


def test_evaluation_masks_the_padding(root: Path) -> None:
    source = loader(root, "val", n=4)
    batches = [tuple(np.asarray(x) for x in b) for b in source.batches(0)]
    assert [int(b[2].sum()) for b in batches] == [4, 4, 2]
    labels = np.concatenate([b[1][b[2]] for b in batches])
    assert labels.tolist() == [0] * 5 + [1] * 5
    source.close()
    source.close()


def test_the_fingerprint_follows_files_seed_and_step(root: Path) -> None:
    first = loader(root, "train").fingerprint
    assert first == "3602b2174da2ce264921c057a92e9b602c24bbf849e10a408d5a54b4cbf40676", (
        "old checkpoints have it"
    )
    assert loader(root, "train").fingerprint == first
    assert loader(root, "train", flip=False).fingerprint != first
    assert loader(root, "train", n=2).fingerprint != first
    assert loader(root, "train", a=2, n=2).fingerprint == first
    picture(9, 9, 9).save(root / "train" / "ant" / "new.png")
    assert loader(root, "train").fingerprint != first


def test_scan_ignores_hidden_and_foreign_files_and_names_an_empty_class(root: Path) -> None:
    folder = root / "train" / "ant"
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    (folder / "deep").mkdir()
    picture(9, 9, 1).save(folder / "deep" / "UP.PNG")
    files = check_train(list_images(root / "train"), 2)
    assert files.class_names == ("ant", "bee")
    assert files.labels.tolist() == [0] * 7 + [1] * 6
    (root / "train" / "cat").mkdir()
    with pytest.raises(UserError, match="cat"):
        check_train(list_images(root / "train"), 3)
    with pytest.raises(UserError, match="nothing"):
        check_train(list_images(root / "nothing"), 2)


def test_without_dali_nothing_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The split has no classes, which would be an error, too."""
    (tmp_path / "train").mkdir()
    monkeypatch.setitem(sys.modules, "seresnext_jax.data.backends.dali_cpu", None)
    with pytest.raises(UserError, match="needs DALI .* or give --data.backend folder"):
        loader(tmp_path, "train", backend="dali-cpu")
    with pytest.raises(UserError, match="no class folders"):
        loader(tmp_path, "train", backend="folder")


# ---- truncated JPEGs, for a decoder that accepts them ------------------------------------------

JPEG_BYTES = {
    "complete": lambda whole: whole,
    "zeros after the end": lambda whole: whole + bytes(99),
    "zeros without end": lambda whole: whole + bytes(9999),
    "bytes after the end": lambda whole: whole + b"thumbnail",
    "truncated": lambda whole: whole[: len(whole) // 2],
    "without its last byte": lambda whole: whole[:-1],
}


def jpeg_reader(folder: Path, kind: str, *, on_bad_image: Any, find_truncated: bool) -> ImageReader:
    """A reader of one JPEG."""
    path = folder / "train" / "ant" / "x.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(300, 200, 3).save(path, "jpeg", quality=95)
    path.write_bytes(JPEG_BYTES[kind](path.read_bytes()))
    index = open_index(folder / "train", "", print)
    return ImageReader(index, TrainCrop(CONFIG), on_bad_image, find_truncated=find_truncated)


def sizes_of(reader: ImageReader) -> list[list[int]]:
    """The size of the only file."""
    reader.check(FIRST)
    return reader.headers(FIRST).sizes.tolist()


FIRST = np.zeros(1, np.int64)
"""The index of the only file."""


@pytest.mark.parametrize("kind", ["truncated", "without its last byte"])
def test_a_truncated_jpeg_follows_the_policy(tmp_path: Path, kind: str) -> None:
    reader = jpeg_reader(tmp_path, kind, on_bad_image="error", find_truncated=True)
    with pytest.raises(UserError, match="can't decode .*x.jpg: image file is truncated"):
        sizes_of(reader)
    reader = jpeg_reader(tmp_path, kind, on_bad_image="skip", find_truncated=True)
    assert sizes_of(reader) == [[0, 0]]
    assert reader.bad_files == [str(tmp_path / "train/ant/x.jpg")]


@pytest.mark.parametrize("kind", ["zeros without end", "bytes after the end"])
def test_pillow_decodes_a_suspicious_jpeg_once(tmp_path: Path, kind: str) -> None:
    reader = jpeg_reader(tmp_path, kind, on_bad_image="error", find_truncated=True)
    assert sizes_of(reader) == [[200, 300]]
    spoil(tmp_path / "train/ant/x.jpg")
    assert sizes_of(reader) == [[200, 300]]


@pytest.mark.parametrize("kind", ["complete", "zeros after the end"])
def test_pillow_does_not_decode_a_complete_jpeg(tmp_path: Path, kind: str) -> None:
    """It could not: the tables are damaged."""
    reader = jpeg_reader(tmp_path, kind, on_bad_image="error", find_truncated=True)
    path = tmp_path / "train/ant/x.jpg"
    path.write_bytes(path.read_bytes().replace(b"\xff\xc4", b"\xff\xc4\0\0", 1))
    with pytest.raises(BadImage):
        open_rgb(path)
    assert sizes_of(reader) == [[200, 300]]


def test_only_jpegs_and_only_where_it_is_asked_for(tmp_path: Path) -> None:
    """Both images are truncated."""
    reader = jpeg_reader(tmp_path, "truncated", on_bad_image="error", find_truncated=False)
    assert sizes_of(reader) == [[200, 300]]
    path = tmp_path / "train/ant/x.jpg"
    picture(30, 20, 1).save(path, "png")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadImage):
        open_rgb(path)
    index = open_index(tmp_path / "train", "", print)
    reader = ImageReader(index, reader.crop, "error", find_truncated=True)
    assert sizes_of(reader) == [[20, 30]]

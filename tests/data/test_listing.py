"""Which files of a folder are images: links, suffixes, and what is said of the others."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from seresnext_jax.config import Backend, DataConfig
from seresnext_jax.data.check import check_data
from seresnext_jax.data.formats import count_kinds
from seresnext_jax.data.walk import files_below
from tests.data.loaders import list_images, open_split

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def picture(path: Path, kind: str | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tint = sum(str(path).encode(errors="surrogateescape")) % 256
    Image.new("RGB", (30, 20), (200, tint, 10)).save(path, kind, **options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of one image each, in both splits."""
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            picture(tmp_path / "data" / split / name / "a.png")
    return tmp_path / "data"


def found(folder: Path) -> list[str]:
    return sorted(os.path.relpath(path, folder) for path in files_below(folder))


# ---- links -------------------------------------------------------------------------------------


def test_links_to_files_and_folders_are_followed(root: Path, tmp_path: Path) -> None:
    picture(tmp_path / "camera" / "deep" / "b.png")
    picture(tmp_path / "c.png")
    ant = root / "train" / "ant"
    (ant / "camera").symlink_to(tmp_path / "camera")
    (ant / "c.png").symlink_to(tmp_path / "c.png")
    (root / "train" / "cow").symlink_to(tmp_path / "camera")
    files = list_images(root / "train")
    assert tuple(files.paths) == (
        "ant/a.png",
        "ant/c.png",
        "ant/camera/deep/b.png",
        *files.paths[3:],
    )
    assert files.paths[3:] == ["bee/a.png", "cow/deep/b.png"]
    assert files.labels.tolist() == [0, 0, 0, 1, 2]


def test_links_make_no_cycle_and_no_file_twice(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    picture(folder / "sub" / "a.png")
    picture(tmp_path / "other" / "b.png")
    links = {
        "self": ".",
        "up": "..",
        "sub/top": "../../x",
        "a_first": "sub",
        "one": "../other",
        "two": "../other",
        "../other/back": "../x",
        "broken": "nowhere",
        "loop": "loop",
    }
    for link, target in links.items():
        (folder / link).symlink_to(target)
    assert found(folder) == ["broken", "loop", "one/b.png", "sub/a.png"]


def test_a_link_to_the_split_is_not_a_class(root: Path) -> None:
    (root / "train" / "again").symlink_to(".")
    assert list_images(root / "train").class_names == ("ant", "bee")


# ---- suffixes ----------------------------------------------------------------------------------

SUFFIXES: dict[str, str | None] = {
    **dict.fromkeys(("jpg", "JPG", "jpeg", "jpe", "jfif", "mpo"), "jpeg"),
    **dict.fromkeys(("png", "apng"), "png"),
    **dict.fromkeys(("bmp", "dib", "gif", "webp", "ppm", "pnm", "tga", "pcx", "sgi", "qoi"), None),
    **dict.fromkeys(("tif", "tiff", "jp2", "ico", "dds"), None),
}


@pytest.mark.filterwarnings("error:Pillow reads a batch")
@pytest.mark.parametrize("backend", ["folder", "dali-cpu"])
def test_every_format_that_pillow_reads_is_used(root: Path, backend: Backend) -> None:
    for suffix, kind in SUFFIXES.items():
        picture(root / "val" / "ant" / f"x.{suffix}", kind)
    data = DataConfig(root=str(root), backend=backend, image_size=16, eval_margin=4, workers=1)
    source = open_split(data, "val", n=4)
    counts = [int(batch.mask.sum()) for batch in source.batches(0)]
    source.close()
    assert sum(counts) == 2 + len(SUFFIXES)
    assert source.not_listed == ""


def test_kinds_are_counted() -> None:
    names = ["a.HEIC", "b.heic", "c", "d.txt", os.fsdecode(b"e.\xff"), "f."]
    assert count_kinds(names) == r".heic 2, no suffix 2, .txt 1, .\udcff 1"
    many = count_kinds(f"{i}.{i}" for i in range(10))
    assert many.endswith(".7 1, other suffixes 2")


def other_files(split: Path) -> None:
    """What is not read as an image."""
    (split / "ant" / "x.HEIC").write_bytes(HEIC)
    picture(split / "ant" / "no_suffix", "png")
    (split / "bee" / "gone").symlink_to("nowhere")
    (split / "bee" / "notes.txt").write_text("")
    (split / "labels.csv").write_text("")
    (split / ".hidden").write_text("")


def test_a_run_is_told_what_is_left_out(root: Path) -> None:
    other_files(root / "val")
    picture(root / "val" / "loose.png")
    data = DataConfig(root=str(root), backend="folder", image_size=16, workers=1)
    source = open_split(data, "val")
    assert source.not_listed == (
        "val/: .csv 1, .heic 1, .txt 1, broken link 1, no suffix 1, "
        ".png 1 outside the class folders"
    )
    source.close()


# ---- what the check of a dataset says ----------------------------------------------------------


def problems(root: Path) -> list[str]:
    return check_data(DataConfig(root=str(root), workers=1), 2, lambda done, total: None).problems


def test_images_that_are_left_out_are_a_problem(root: Path) -> None:
    other_files(root / "val")
    (line,) = problems(root)
    assert line.startswith(
        "3 file(s) in val/ seem to be images and would be left out (.heic 1, brok"
    )


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.heic", lambda path: path.write_bytes(HEIC)),
        ("x", lambda path: path.write_bytes(HEIC)),
        ("x.jpg_", lambda path: picture(path, "jpeg")),
        ("x.nef", lambda path: path.write_bytes(b"")),
        ("x.jxl", lambda path: path.write_bytes(b"\xff\x0a")),
        ("x.svg", lambda path: path.write_text("<svg/>")),
    ],
)
def test_the_fixes_for_images_that_are_left_out(
    root: Path, name: str, write: Callable[[Path], object]
) -> None:
    path = root / "val" / "ant" / name
    write(path)
    (line,) = problems(root)
    assert "to JPEG or PNG" in line and "suffix of their format" in line
    path.unlink()
    picture(path.with_name("x-converted.jpg"))
    assert problems(root) == []


def test_other_files_are_only_counted(root: Path) -> None:
    for name in ("notes.txt", "Thumbs.db", "README", "boxes.json", "table.h5"):
        (root / "val" / "ant" / name).write_text("no image")
    found = check_data(DataConfig(root=str(root), workers=1), 2, lambda done, total: None)
    assert found.problems == []
    facts = dict(found.facts)
    assert facts["val: files left out"] == ".db 1, .h5 1, .json 1, .txt 1, no suffix 1"
    assert facts["train: files left out"] == "0"

"""The index of a split: used again only if it is right, and never half-made."""

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from seresnext_jax.config import DataConfig
from seresnext_jax.data import index as index_module
from seresnext_jax.data.files import list_folder
from seresnext_jax.data.index import SplitIndex, open_index
from seresnext_jax.data.reader import ImageReader
from seresnext_jax.data.transform import TrainCrop
from tests.data.loaders import spoil


def picture(path: Path, width: int = 30, height: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 10, 10)).save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A split of five images in three folders; its index is kept, however small and new it is."""
    monkeypatch.setattr(index_module, "MIN_IMAGES", 0)
    monkeypatch.setattr(index_module, "SETTLED", 0)
    for name in ("ant/a.jpg", "ant/b.jpg", "ant/deep/c.jpg", "bee/a.jpg", "bee/d.png"):
        picture(tmp_path / "train" / name)
    for place in (".", "ant", "ant/deep", "bee"):
        os.utime(tmp_path / "train" / place, (0, 0))  # a change may come in the same tick
    return tmp_path / "train"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that are listed in a test."""
    names: list[str] = []

    def recording(folder: Path, progress: Callable[[str], None]) -> object:
        names.append(folder.name)
        return list_folder(folder, progress)

    monkeypatch.setattr(index_module, "list_folder", recording)
    return names


SIZES = [[20, 30]] * 5
"""Height and width of the images."""


def images(folder: Path) -> set[Path]:
    return {*folder.rglob("*.jpg"), *folder.rglob("*.png")}


def kept_in(folder: Path) -> str:
    return str(folder.parent / "index")


def opened(folder: Path) -> SplitIndex:
    return open_index(folder, kept_in(folder), print)


def read_all(index: SplitIndex, *, upright: bool = False) -> list[list[int]]:
    """The sizes of all images, as a run reads them; keeps the index."""
    reader = ImageReader(index, TrainCrop(DataConfig()), "skip", upright=upright)
    every = np.arange(len(index.files.paths))
    reader.check(reader.unchecked(every))
    sizes = reader.headers(every).sizes
    reader.keep()
    return sizes.tolist()


# ---- the list of files -------------------------------------------------------------------------


def test_an_unchanged_split_is_listed_once(folder: Path, listed: list[str]) -> None:
    first = opened(folder)
    again = opened(folder)
    assert listed == ["train"]
    assert list(again.files.paths) == list(first.files.paths) == sorted(first.files.paths)
    assert again.files.labels.tolist() == [0, 0, 0, 1, 1]
    assert again.files.class_names == ("ant", "bee")
    assert again.files.fingerprint("x") == list_folder(folder, print).files.fingerprint("x")


def add(folder: Path) -> None:
    picture(folder / "ant" / "new.jpg")


def add_with_an_old_time(folder: Path) -> None:
    """As tar and rsync do."""
    before = (folder / "ant").stat()
    add(folder)
    while (folder / "ant").stat().st_ctime_ns == before.st_ctime_ns:  # until the clock ticks
        os.utime(folder / "ant", ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": add,
    "added with the folder's old time": add_with_an_old_time,
    "added deep": lambda folder: picture(folder / "ant" / "deep" / "new.jpg"),
    "removed": lambda folder: (folder / "bee" / "a.jpg").unlink(),
    "renamed": lambda folder: (folder / "bee" / "a.jpg").rename(folder / "bee" / "z.jpg"),
    "new class": lambda folder: picture(folder / "cow" / "a.jpg"),
    "class removed": lambda folder: (folder / "ant" / "deep").rename(folder.parent / "deep"),
    "class replaced": lambda folder: (
        (folder / "bee").rename(folder.parent / "bee"),
        picture(folder / "bee" / "other.jpg"),
    ),
    "other file": lambda folder: (folder / "ant" / "notes.txt").write_text(""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_split_is_listed_again(folder: Path, listed: list[str], change: str) -> None:
    opened(folder)
    CHANGES[change](folder)
    found = opened(folder).files
    assert listed == ["train"] * 2
    expected = list_folder(folder, print).files
    assert list(found.paths) == list(expected.paths) and list(found.left_out) == list(
        expected.left_out
    )
    assert opened(folder).files.fingerprint("") == expected.fingerprint("")
    assert listed == ["train"] * 2


def test_a_link_that_leads_nowhere_yet_keeps_no_index(folder: Path, listed: list[str]) -> None:
    """A share that is not mounted: when it is, no folder of the split changes."""
    (folder / "cow").symlink_to(folder.parent / "share")
    assert opened(folder).files.class_names == ("ant", "bee")
    picture(folder.parent / "share" / "a.jpg")
    assert opened(folder).files.class_names == ("ant", "bee", "cow")
    assert opened(folder).files.class_names == ("ant", "bee", "cow")
    assert listed == ["train"] * 2


def test_a_folder_that_has_just_changed_is_not_trusted(
    folder: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change in the same tick of the clock would not be seen."""
    monkeypatch.undo()
    monkeypatch.setattr(index_module, "MIN_IMAGES", 0)
    opened(folder)
    monkeypatch.setattr(index_module, "list_folder", lambda *_: listed.append("again"))
    with pytest.raises(AttributeError):
        opened(folder)
    assert listed == ["again"]


def test_other_suffixes_of_images_need_another_list(
    folder: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder)
    monkeypatch.setattr(index_module, "format_names", lambda: ".jpg .new")
    opened(folder)
    assert listed == ["train"] * 2


def test_a_small_split_and_an_empty_option_keep_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_index(folder, "", print)
    monkeypatch.setattr(index_module, "MIN_IMAGES", 6)
    opened(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["train"]


# ---- headers -----------------------------------------------------------------------------------


def test_headers_are_read_once(folder: Path) -> None:
    assert read_all(opened(folder)) == SIZES
    spoil(*images(folder))
    assert read_all(opened(folder)) == SIZES


def test_a_file_that_is_written_again_is_read_again(folder: Path) -> None:
    """In place: its folder does not change. The others are not read."""
    read_all(opened(folder))
    spoil(*images(folder))
    picture(folder / "ant" / "b.jpg", 50, 40)
    assert read_all(opened(folder)) == [[20, 30], [40, 50], *SIZES[2:]]


def test_headers_outlast_a_change_of_the_folder(folder: Path) -> None:
    """A file of no interest: the same images are listed."""
    read_all(opened(folder))
    (folder / "ant" / "notes.txt").write_text("")
    spoil(*images(folder))
    assert read_all(opened(folder)) == SIZES


def test_a_run_that_needs_more_reads_it(folder: Path) -> None:
    """Of the other images the orientation is known."""
    path = folder / "ant" / "b.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    read_all(opened(folder))
    spoil(*images(folder) - {path})
    assert read_all(opened(folder), upright=True) == [[20, 30], [30, 20], *SIZES[2:]]
    assert read_all(opened(folder)) == SIZES


def test_a_bad_image_is_not_remembered(folder: Path) -> None:
    good = (folder / "bee" / "a.jpg").read_bytes()
    (folder / "bee" / "a.jpg").write_bytes(b"bad")
    assert read_all(opened(folder))[3] == [0, 0]
    (folder / "bee" / "a.jpg").write_bytes(good)
    assert read_all(opened(folder)) == SIZES


def test_processes_add_to_one_index(folder: Path) -> None:
    """Each reads its own images."""
    indexes = [opened(folder), opened(folder)]
    for process, index in enumerate(indexes):
        reader = ImageReader(index, TrainCrop(DataConfig()), "error")
        reader.check(np.arange(5)[process::2])
        reader.keep()
    spoil(*images(folder))
    assert read_all(opened(folder)) == SIZES


# ---- the file ----------------------------------------------------------------------------------


def test_a_damaged_index_is_made_again(folder: Path, listed: list[str]) -> None:
    read_all(opened(folder))
    (file,) = Path(kept_in(folder)).glob("*.npz")
    whole = file.read_bytes()
    expected = list_folder(folder, print).files.fingerprint("")
    for end in [*range(0, len(whole), max(1, len(whole) // 40))]:
        file.write_bytes(whole[:end])
        with pytest.warns(UserWarning, match="index .* can't be read .* rebuilding it"):
            assert opened(folder).files.fingerprint("") == expected
    for at in range(0, len(whole), 97):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        with warnings.catch_warnings(action="ignore"):
            index = opened(folder)
            assert index.files.fingerprint("") == expected
            assert read_all(index) == SIZES


@pytest.mark.parametrize("at", ["open", "savez", "replace"])
def test_a_writer_that_is_killed_leaves_the_old_index(
    folder: Path, listed: list[str], at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    read_all(opened(folder))
    with monkeypatch.context() as patch:
        owner = {"open": Path, "savez": np, "replace": Path}[at]
        patch.setattr(owner, at, kill)
        with pytest.raises(Killed):
            add(folder)
            opened(folder)
    unfinished = list(Path(kept_in(folder)).glob("*.tmp"))
    assert len(unfinished) == (at != "open")
    listed.clear()
    assert len(opened(folder).files.paths) == 6
    assert listed == ["train"]
    assert len(opened(folder).files.paths) == 6
    assert listed == ["train"]
    assert list(Path(kept_in(folder)).glob("*.tmp")) == unfinished, "it may be another process's"
    for path in unfinished:
        os.utime(path, (0, 0))
    picture(folder / "ant" / "newer.jpg")
    opened(folder)
    assert not list(Path(kept_in(folder)).glob("*.tmp"))


def test_a_full_disk_leaves_no_half_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: BinaryIO, **arrays: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.warns(UserWarning, match="can't be kept .*No space left on device"):
            opened(folder)
    assert [path.suffix for path in Path(kept_in(folder)).iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_costs_only_a_warning(folder: Path) -> None:
    Path(kept_in(folder)).write_text("a file")
    with pytest.warns(UserWarning, match="can't be kept .* give --data.index another folder"):
        index = opened(folder)
    assert read_all(index) == SIZES
    read_all(open_index(folder, f"{kept_in(folder)}-other", print))
    assert read_all(open_index(folder, f"{kept_in(folder)}-other", print)) == SIZES


def test_an_index_of_another_version_is_made_again(folder: Path, listed: list[str]) -> None:
    index = opened(folder)
    assert index.file is not None
    index_module.write_index(replace(index, listed_ns=0), index.file)
    opened(folder)
    assert listed == ["train"] * 2

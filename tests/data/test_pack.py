"""Packing a split: it can be killed, it goes on, and what it leaves is right."""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seresnext_jax.data import pack as pack_module
from seresnext_jax.data.files import FileList
from seresnext_jax.data.shards import PACKING, index_beside
from seresnext_jax.errors import UserError
from tests.data.loaders import list_images
from tests.data.shards import batches, pack, pack_files, picture, same, write_folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "folders")


@pytest.fixture
def packed(root: Path, tmp_path: Path) -> Path:
    return pack(root, tmp_path / "packed")


@pytest.fixture
def files(root: Path) -> FileList:
    return list_images(root / "val")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "val"


class Killed(BaseException):
    pass


def kill_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """End the packer at its `number`-th change of a name, or write to the disk, or deletion."""
    calls = iter(range(10**6))

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if next(calls) == number:
                raise Killed
            return function(*args)

        return call

    patch.setattr(pack_module.os, "fsync", counted(os.fsync))
    patch.setattr(Path, "replace", counted(Path.replace))
    patch.setattr(Path, "unlink", counted(Path.unlink))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_a_packer_that_is_killed_anywhere_goes_on(
    root: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, expected = list_images(root / "val"), contents(packed / "val")
    number = 0
    while True:
        out = tmp_path / str(number) / "val"
        try:
            with monkeypatch.context() as patch:
                kill_at(patch, number)
                pack_files(files, out)
            break
        except Killed:
            assert refused(out)
        pack_files(files, out)
        assert contents(out) == expected
        assert same(batches_of(out), batches_of(packed / "val"))
        pack_files(files, out)
        assert {path.name for path in out.iterdir()} == {*expected, "index.npz"}
        number += 1
    assert number > 15


def batches_of(val: Path) -> list[tuple[np.ndarray, ...]]:
    return batches(val.parent, "val")


def refused(val: Path) -> bool:
    """Whether a run refuses the folder, or it is complete but not tidied up."""
    if index_beside(val).exists() and not (val / PACKING).exists():
        return True
    with pytest.raises(
        UserError, match="not packed completely: run python pack_data.py again|no class"
    ):
        batches_of(val)
    return True


def test_only_the_rest_is_packed(
    files: FileList, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 9)
        pack_files(files, out)
    done = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
    assert done
    pack_files(files, out)
    assert {name: (out / name).stat().st_ino for name in done} == done


def test_other_images_or_options_are_refused(root: Path, packed: Path, tmp_path: Path) -> None:
    (root / "val" / "ant" / "0.jpg").unlink()
    with pytest.raises(UserError, match="contains shards of other images: give --out another"):
        pack(root, packed)
    pack(root, tmp_path / "another")
    begun = tmp_path / "begun" / "val"
    begun.mkdir(parents=True)
    files = list_images(root / "val")
    for other in ("{}", "{"):
        (begun / PACKING).write_text(other)
        with pytest.raises(UserError, match="begun with other images or options: .* remove the f"):
            pack_files(files, begun)
    shutil.rmtree(begun)
    pack_files(files, begun)
    full = tmp_path / "full" / "val"
    (full / "something").mkdir(parents=True)
    with pytest.raises(UserError, match="has other files: give --out an empty folder"):
        pack_files(files, full)
    (full / "something").rmdir()
    pack_files(files, full)


def test_images_that_changed_since_are_packed_again(files: FileList, out: Path, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 9)
        pack_files(files, out)
    picture(77).save(root / "val" / "ant" / "0.jpg")
    pack_files(files, out)
    assert same(batches_of(out), batches(root, "val"))
    picture(78).save(root / "val" / "ant" / "0.jpg")
    with pytest.raises(UserError, match="1 image.s. have changed .*ant/0.jpg.* remove that folder"):
        pack_files(files, out)
    shutil.rmtree(out)
    pack_files(files, out)
    assert same(batches_of(out), batches(root, "val"))


def test_a_second_packer_is_refused(files: FileList, out: Path, root: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(UserError, match="another program is packing .*: wait for"):
            pack_files(files, out)

    pack_files(files, out, progress=second)
    pack_files(files, out)
    assert same(batches_of(out), batches(root, "val"))


def test_a_shard_need_not_fit_in_memory(
    files: FileList, out: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = most = 0
    read, add = pack_module._read_file, tarfile.TarFile.addfile

    def reading(path: str) -> tuple[bytes, int]:
        nonlocal ahead, most
        ahead += 1
        most = max(most, ahead)
        return read(path)

    def adding(*args: Any) -> None:
        nonlocal ahead
        ahead -= 1
        add(*args)

    monkeypatch.setattr(pack_module, "_FILES_AHEAD", 2)
    monkeypatch.setattr(pack_module, "_read_file", reading)
    monkeypatch.setattr(tarfile.TarFile, "addfile", adding)
    pack_files(files, out, images_per_shard=99)
    assert len(files.paths) > 10 and most <= 3
    assert same(batches_of(out), batches(root, "val"))


def test_a_split_without_images_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "val" / "ant").mkdir(parents=True)
    with pytest.raises(UserError, match="has no images: nothing can be packed"):
        pack_files(list_images(tmp_path / "val"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_written_wrongly_is_noticed(
    files: FileList, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="differently from what was written"),
    ):
        values = iter(range(10**6))
        patch.setattr(pack_module.zlib, "crc32", lambda data: next(values))
        pack_files(files, out)
    assert not list(out.glob("*.tar"))
    pack_files(files, out)


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_shard_whose_headers_are_damaged_is_noticed(
    number: int, files: FileList, out: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tarfile ends at a damaged header without an error, except at the first one."""
    read_back = pack_module._read_back

    def damaged(path: Path, *rest: Any) -> Any:
        data = bytearray(path.read_bytes())
        with tarfile.open(path) as tar:
            starts = [member.offset_data - 512 for member in tar.getmembers()]
        data[starts[number]] ^= 1
        path.write_bytes(data)
        return read_back(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "_read_back", damaged)
        with pytest.raises(UserError, match="differently from what was written"):
            pack_files(files, out)
    assert not list(out.glob("*.tar"))
    pack_files(files, out)
    assert same(batches_of(out), batches(root, "val"))


def test_an_image_that_vanished_since_is_one_line(
    files: FileList, out: Path, root: Path, tmp_path: Path
) -> None:
    pack_files(files, out)
    image = root / "val" / "ant" / "0.jpg"
    away = image.rename(tmp_path / "away.jpg")
    with pytest.raises(UserError, match="1 image.s. have changed .*ant/0.jpg"):
        pack_files(files, out)
    away.rename(image)
    pack_files(files, out)


def test_a_full_disk_is_one_line_and_goes_on(
    files: FileList, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pack_module.os, "fsync", full)
        with pytest.raises(
            UserError, match="No space left on device.*run python pack_data.py again"
        ):
            pack_files(files, out)
    pack_files(files, out)

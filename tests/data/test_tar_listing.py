"""Tar files that others have packed: samples with numbers as labels, and class folders."""

import gzip
import os
import shutil
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path, PurePosixPath

import jax
import numpy as np
import pytest

from seresnext_jax.config import Backend, Config, ModelConfig
from seresnext_jax.data.open import open_splits
from seresnext_jax.data.tar_listing import list_shards
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh
from tests.data.loaders import open_split
from tests.data.shards import (
    CONFIG,
    batches,
    jpeg,
    loader,
    same,
    webdataset,
    write_folders,
    write_tar,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "folders")


@pytest.mark.parametrize("prefix", ["", "./", "some/folder.x/"])
@pytest.mark.parametrize("backend", ["folder", "dali-cpu"])
def test_samples_with_numbers_as_labels(tmp_path: Path, prefix: str, backend: Backend) -> None:
    webdataset(tmp_path / "val", prefix=prefix)
    found = batches(tmp_path, "val", backend=backend)
    labels, mask = (np.concatenate([batch[i].ravel() for batch in found]) for i in (1, 2))
    assert labels[mask].tolist() == [0, 1, 2] * 4
    source = loader(tmp_path, "val")
    assert source.class_names == ()
    assert source.not_listed == "val/: .json 12"
    source.close()


def test_numbers_of_other_classes_are_refused(tmp_path: Path) -> None:
    webdataset(tmp_path / "train")
    with pytest.raises(UserError, match="labels from 0 to 2, but the network has 2 classes: give"):
        open_split(replace(CONFIG, root=str(tmp_path), index=""), "train", num_classes=2)
    open_split(replace(CONFIG, root=str(tmp_path), index=""), "train", num_classes=3).close()


def test_numbers_and_class_folders_do_not_mix(tmp_path: Path) -> None:
    """Nothing says that their labels mean the same classes."""
    webdataset(tmp_path / "val")
    write_tar(tmp_path / "train" / "0.tar", {f"{name}/0.jpg": jpeg(0) for name in "abc"})
    config = Config(
        model=ModelConfig(num_classes=3),
        data=replace(CONFIG, root=str(tmp_path), index=""),
        batch_size=1,
    )
    message = (
        "train/ has class folders .*, but val/ has shards with numbers as labels .*: give both"
    )
    with pytest.raises(UserError, match=message):
        open_splits(config, make_mesh(jax.devices()[:1]))
    webdataset(tmp_path / "train")
    (tmp_path / "train" / "0.tar").unlink()
    for source in open_splits(config, make_mesh(jax.devices()[:1])):
        assert source is not None
        source.close()


def test_class_folders_that_tar_has_packed(root: Path, tmp_path: Path) -> None:
    """`tar cf x.tar *` in the split's folder, in two parts."""
    folder = tmp_path / "tars" / "val"
    folder.mkdir(parents=True)
    for number, names in enumerate((("çat", "ant"), ("bee",))):
        with tarfile.open(folder / f"{number}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for name in names:
                tar.add(root / "val" / name, name)
    assert same(batches(tmp_path / "tars", "val"), batches(root, "val"))


def test_images_without_a_label_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "val" / "0.tar", {"a.jpg": jpeg(0), "b.jpg": jpeg(1)})
    with pytest.raises(
        UserError, match="2 image.s. .* not in a class folder and have no .cls .* pack"
    ):
        batches(tmp_path, "val")
    write_tar(tmp_path / "val" / "0.tar", {"a.jpg": jpeg(0), "b.jpg": jpeg(1), "b.cls": b"1"})
    with pytest.raises(
        UserError, match=r"1 image.s. .* have no .cls file beside them \(first: a.jpg\)"
    ):
        batches(tmp_path, "val")
    members = {"a.jpg": jpeg(0), "b.jpg": jpeg(1), "b.cls": b"1", "a.cls": b"0"}
    write_tar(tmp_path / "val" / "0.tar", members)
    assert len(batches(tmp_path, "val")) == 1


@pytest.mark.parametrize("kind", ["cut", "text", "label"])
def test_what_is_no_shard_is_refused(tmp_path: Path, kind: str) -> None:
    path = webdataset(tmp_path / "val") / "000001.tar"
    if kind == "label":
        write_tar(path, {"a.jpg": jpeg(0), "a.cls": b"dog"})
    else:
        path.write_bytes(path.read_bytes()[:5000] if kind == "cut" else b"text" * 999)
    with pytest.raises(UserError, match="000001.tar can't be read as a shard .* replace or remove"):
        batches(tmp_path, "val")
    path.unlink()
    assert len(batches(tmp_path, "val")) == 2


def test_a_shard_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Not taken for one with fewer images."""
    path = tmp_path / "val" / "0.tar"
    write_tar(path, {f"ant/{i}.jpg": jpeg(i) for i in range(3)})
    whole = path.read_bytes()
    last = len(whole.rstrip(b"\0"))
    for end in range(0, last, 256):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="can't be read as a shard"):
            list_shards(tmp_path / "val", print)
    for other in (whole[:last] + bytes(2**21), whole + whole):
        path.write_bytes(other)
        with pytest.raises(UserError, match="can't be read as a shard"):
            list_shards(tmp_path / "val", print)
    path.write_bytes(whole)
    assert len(list_shards(tmp_path / "val", print).files.paths) == 3


@pytest.mark.parametrize("label", [b"-1", b"1_0", b"99999999999", b"", b"dog", b"1.5", b"\xff"])
def test_what_is_no_label_is_refused(tmp_path: Path, label: bytes) -> None:
    write_tar(tmp_path / "val" / "0.tar", {"a.jpg": jpeg(0), "a.cls": label})
    with pytest.raises(UserError, match="0.tar can't be read as a shard"):
        list_shards(tmp_path / "val", print)
    write_tar(tmp_path / "val" / "0.tar", {"a.jpg": jpeg(0), "a.cls": b" 2\n"})
    assert list_shards(tmp_path / "val", print).files.labels.tolist() == [2]


def test_other_images_of_a_sample_are_left_out(tmp_path: Path) -> None:
    members = {"0.jpg": jpeg(0), "0.mask.png": jpeg(1), "0.cls": b"1"}
    write_tar(tmp_path / "val" / "0.tar", members)
    files = list_shards(tmp_path / "val", print).files
    assert list(files.paths) == ["0.jpg"] and list(files.left_out) == ["0.mask.png"]
    assert files.note_left_out() == "val/: .png 1"


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    """Its label would be the last one's."""
    path = tmp_path / "val" / "0.tar"
    write_tar(path, {"0.jpg": jpeg(0), "0.cls": b"0"})
    with tarfile.open(path, "a") as tar:
        for name, data in {"0.jpg": jpeg(1), "0.cls": b"5"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    with pytest.raises(UserError, match="0.jpg is in it twice"):
        list_shards(tmp_path / "val", print)


def test_links_and_hidden_folders_in_a_shard(root: Path, tmp_path: Path) -> None:
    ant = root / "val" / "ant"
    os.link(ant / "0.jpg", ant / "hard.jpg")
    (ant / "soft.jpg").symlink_to("0.jpg")
    (ant / ".thumbs").mkdir()
    shutil.copy(ant / "0.jpg", ant / ".thumbs" / "0.jpg")
    (tmp_path / "val").mkdir()
    with tarfile.open(tmp_path / "val" / "0.tar", "w") as tar:
        tar.add(ant, "ant")
    found = list_shards(tmp_path / "val", print).files
    assert set(found.paths) | {"ant/soft.jpg"} == {
        f"ant/{path}" for path in ("hard.jpg", "soft.jpg", *(f"{i}.jpg" for i in range(4)))
    } | {f"ant/deep/{'x' * 120}.png"}
    assert list(found.left_out) == ["ant/soft.jpg"]
    hard, soft = (list(found.paths).index(f"ant/{name}.jpg") for name in ("hard", "0"))
    source = found.source(hard), found.source(soft)
    assert source[0].data == source[1].data  # type: ignore[union-attr]


def random_tar(path: Path, seed: int) -> None:
    """Class folders with every kind of member, in each format of tar."""
    draw = np.random.default_rng(seed)
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    written: list[str] = []
    with tarfile.open(path, "w", format=formats[seed % 3], pax_headers={"comment": "é"}) as tar:
        for number in range(20):
            odd = ("a b", "c\nd", "çé", ".hidden", "x" * 90, "y.z", "o" * 99 + "/" + "p" * 99)
            base = f"{odd[draw.integers(len(odd))]}{number}{('.jpg', '.PNG', '.txt')[number % 3]}"
            if formats[seed % 3] == tarfile.USTAR_FORMAT:
                base = base[-80:]
            name = f"{'./' * int(draw.integers(2))}class-{draw.integers(3)}/{base}"
            member = tarfile.TarInfo(name)
            member.mtime = (1, 10**9 + 0.5, 2**34)[draw.integers(2 + (seed % 3 > 0))]
            kind = draw.integers(8)
            data = draw.bytes(int(draw.integers(2000))) if kind < 5 else b""
            member.size = len(data)
            if kind >= 5:
                kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE if written else tarfile.DIRTYPE)
                member.type = (*kinds, tarfile.DIRTYPE)[kind - 5]
                member.linkname = written[-1] if written else "x"
            else:
                written.append(name)
            tar.addfile(member, BytesIO(data))


def found_by_tarfile(path: Path) -> dict[str, bytes]:
    """The images that tarfile finds in a shard, without hidden ones."""
    found = {}
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            name = str(PurePosixPath(member.name))
            is_image = name.lower().endswith((".jpg", ".png")) and "/." not in f"/{name}"
            if is_image and (member.isreg() or member.islnk()):
                file = tar.extractfile(member)
                assert file is not None
                found[name] = file.read()
    return found


def test_compressed_tar_files_are_refused(tmp_path: Path) -> None:
    path = webdataset(tmp_path / "val") / "000001.tar"
    path.with_name("000001.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(
        UserError, match="compressed tar files .first: 000001.tar.gz.* decompress or"
    ):
        batches(tmp_path, "val")
    path.write_bytes(gzip.decompress(path.with_name("000001.tar.gz").read_bytes()))
    path.with_name("000001.tar.gz").unlink()
    assert len(batches(tmp_path, "val")) == 3


def test_a_name_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    with tarfile.open(tmp_path / "val" / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("ant/a.jpg")
        member.pax_headers = {"path": "ant/a\0b.jpg"}
        tar.addfile(member)
    with pytest.raises(UserError, match="0.tar can't be read as a shard .*zero byte"):
        list_shards(tmp_path / "val", print)


@pytest.mark.parametrize("seed", range(30))
def test_any_tar_is_read_as_tarfile_reads_it(tmp_path: Path, seed: int) -> None:
    (tmp_path / "val").mkdir()
    path = tmp_path / "val" / "0.tar"
    random_tar(path, seed)
    expected = found_by_tarfile(path)
    files = list_shards(tmp_path / "val", print).files
    assert list(files.paths) == sorted(expected, key=lambda name: name.split("/", 1))
    for index, name in enumerate(files.paths):
        assert files.class_names[files.labels[index]] == name.split("/")[0]
        assert files.source(index) == (name, expected[name])

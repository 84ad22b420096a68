"""Shards: packed by pack_data.py or by others, read like the same images in folders."""

import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from seresnext_jax.config import Backend, Config, DataConfig, ModelConfig
from seresnext_jax.data import index as index_module
from seresnext_jax.data import pack as pack_module
from seresnext_jax.data.check import check_data
from seresnext_jax.data.files import FileList, list_images
from seresnext_jax.data.gone import DataGone
from seresnext_jax.data.index import open_index
from seresnext_jax.data.open import SPLITS, Split, open_splits
from seresnext_jax.data.pack import pack_split
from seresnext_jax.data.shards import PACKING, ShardList, index_beside, list_shards
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh
from tests.data.loaders import open_split

CONFIG = DataConfig(backend="folder", image_size=16, eval_margin=4, workers=1)


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Class folders with JPEGs and PNGs, some of them deeper, and a name that is not ASCII."""
    for split in SPLITS:
        for label, name in enumerate(("ant", "bee", "çat")):
            folder = tmp_path / "folders" / split / name
            (folder / "deep").mkdir(parents=True)
            for i in range(4):
                seed = 100 * label + i + (split == "val") * 50
                picture(seed, 40 + 3 * i).save(folder / f"{i}.jpg", quality=95)
            picture(seed + 9).save(folder / "deep" / f"{'x' * 120}.png")
    return tmp_path / "folders"


def pack(root: Path, out: Path) -> Path:
    """Both splits as shards of four images."""
    for split in SPLITS:
        pack_split(
            list_images(root / split),
            out / split,
            images_per_shard=4,
            shuffled=split == "train",
            progress=lambda *_: None,
        )
    return out


@pytest.fixture
def packed(root: Path, tmp_path: Path) -> Path:
    return pack(root, tmp_path / "packed")


def loader(root: Path, split: Split, **options: Any) -> Any:
    config = replace(CONFIG, root=str(root), index="", **options)
    return open_split(config, split, n=5, num_classes=3)


def batches(root: Path, split: Split, **options: Any) -> list[tuple[np.ndarray, ...]]:
    """All batches of an evaluation, or of two epochs."""
    source = loader(root, split, **options)
    number = source.num_steps * (1 if split == "val" else 2)
    found = [
        tuple(map(np.asarray, b)) for _, b in zip(range(number), source.batches(0), strict=False)
    ]
    source.close()
    return found


def same(one: Any, other: Any) -> bool:
    return all(
        np.array_equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in zip(a, b, strict=True)
    )


# ---- packed by this project --------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["folder", "dali-cpu"])
@pytest.mark.parametrize("split", SPLITS)
def test_shards_give_the_batches_of_the_folders(
    root: Path, packed: Path, split: Split, backend: Backend
) -> None:
    assert len(list((packed / split).glob("*.tar"))) == 4
    assert same(batches(packed, split, backend=backend), batches(root, split, backend=backend))
    one, other = loader(packed, split), loader(root, split)
    assert one.fingerprint == other.fingerprint, "a run goes on from its checkpoints"
    assert one.class_names == other.class_names == ("ant", "bee", "çat")
    one.close(), other.close()


def test_the_shards_are_ordinary_tar_files(root: Path, packed: Path, tmp_path: Path) -> None:
    for shard in (packed / "train").glob("*.tar"):
        with tarfile.open(shard) as tar:
            tar.extractall(tmp_path / "out", filter="data")
    for path in (root / "train").rglob("*.*"):
        assert (
            tmp_path / "out" / path.relative_to(root / "train")
        ).read_bytes() == path.read_bytes()


def test_training_shards_mix_the_classes_and_others_keep_the_order(packed: Path) -> None:
    train, val = (open_index(packed / split, "", print).files for split in SPLITS)
    assert isinstance(train, ShardList) and isinstance(val, ShardList)
    first = train.labels[train.places["shard"] == 0]
    assert len(set(first.tolist())) > 1
    assert np.array_equal(val.places["shard"], np.sort(val.places["shard"]))


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("backend", ["folder", "dali-cpu"])
def test_a_bad_image_follows_the_policy(
    root: Path, tmp_path: Path, policy: Any, backend: Backend
) -> None:
    for name, data in {"0": b"bad", "1": (root / "val/ant/1.jpg").read_bytes()[:-99]}.items():
        (root / "val" / "ant" / f"{name}.jpg").write_bytes(data)
    packed = pack(root, tmp_path / "packed")
    if policy == "skip":
        options: Any = {"on_bad_image": policy, "backend": backend}
        assert same(batches(packed, "val", **options), batches(root, "val", **options))
        source = loader(packed, "val", **options)
        list(source.batches(0))
        source.close()
        shard = packed / "val" / "val-000000.tar"
        assert sorted(source.bad_files) == [f"{shard}: ant/0.jpg", f"{shard}: ant/1.jpg"]
    else:
        with pytest.raises(UserError, match=r"can't decode .*val-000000.tar: ant/0.jpg"):
            batches(packed, "val", backend=backend)


def test_check_data_reads_shards(root: Path, packed: Path, tmp_path: Path) -> None:
    def check(folder: Path) -> list[str]:
        return check_data(DataConfig(root=str(folder), workers=1), 3, lambda *_: None).problems

    assert check(packed) == []
    shutil.copy(root / "train/ant/0.jpg", root / "val/ant/again.jpg")
    (root / "val/ant/1.jpg").write_bytes(b"bad")
    lines = check(pack(root, tmp_path / "again"))
    assert len(lines) == 2
    assert "1 images of val/ are in train/ too" in lines[0]
    assert "ant/1.jpg can't be decoded" in lines[1]


# ---- packing -----------------------------------------------------------------------------------


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
                pack_val(files, out)
            break
        except Killed:
            assert refused(out)
        pack_val(files, out)
        assert contents(out) == expected
        assert same(batches_of(out), batches_of(packed / "val"))
        pack_val(files, out)
        assert {path.name for path in out.iterdir()} == {*expected, "index.npz"}
        number += 1
    assert number > 15


def pack_val(files: FileList, out: Path) -> None:
    pack_split(files, out, images_per_shard=4, shuffled=False, progress=lambda *_: None)


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
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, out = list_images(root / "val"), tmp_path / "val"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 9)
        pack_val(files, out)
    done = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
    assert done
    pack_val(files, out)
    assert {name: (out / name).stat().st_ino for name in done} == done


def test_other_images_or_options_are_refused(root: Path, packed: Path, tmp_path: Path) -> None:
    (root / "val" / "ant" / "0.jpg").unlink()
    with pytest.raises(UserError, match="contains shards of other images: give --out another"):
        pack(root, packed)
    pack(root, tmp_path / "another")
    begun = tmp_path / "begun" / "val"
    begun.mkdir(parents=True)
    (begun / PACKING).write_text("{}")
    files = list_images(root / "val")
    with pytest.raises(UserError, match="begun with other images or options: .* remove the folder"):
        pack_val(files, begun)
    shutil.rmtree(begun)
    pack_val(files, begun)
    full = tmp_path / "full" / "val"
    (full / "something").mkdir(parents=True)
    with pytest.raises(UserError, match="has other files: give --out an empty folder"):
        pack_val(files, full)
    (full / "something").rmdir()
    pack_val(files, full)


def test_images_that_changed_since_are_packed_again(root: Path, tmp_path: Path) -> None:
    files, out = list_images(root / "val"), tmp_path / "val"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 9)
        pack_val(files, out)
    picture(77).save(root / "val" / "ant" / "0.jpg")
    pack_val(files, out)
    assert same(batches_of(out), batches(root, "val"))
    picture(78).save(root / "val" / "ant" / "0.jpg")
    with pytest.raises(UserError, match="1 images have changed since .*ant/0.jpg.* remove it"):
        pack_val(files, out)
    shutil.rmtree(out)
    pack_val(files, out)
    assert same(batches_of(out), batches(root, "val"))


def test_a_second_packer_is_refused(root: Path, tmp_path: Path) -> None:
    files, out = list_images(root / "val"), tmp_path / "val"

    def second(done: int, total: int) -> None:
        with pytest.raises(UserError, match="another program is packing .*: wait for"):
            pack_val(files, out)

    options: Any = {"images_per_shard": 4, "shuffled": False, "progress": second}
    pack_split(files, out, **options)
    pack_val(files, out)
    assert same(batches_of(out), batches(root, "val"))


def test_a_shard_need_not_fit_in_memory(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, ahead, most = list_images(root / "val"), 0, 0
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
    pack_split(
        files, tmp_path / "val", images_per_shard=99, shuffled=False, progress=lambda *_: None
    )
    assert len(files.paths) > 10 and most <= 3
    assert same(batches_of(tmp_path / "val"), batches(root, "val"))


def test_a_split_without_images_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "val" / "ant").mkdir(parents=True)
    with pytest.raises(UserError, match="has no images: nothing can be packed"):
        pack_val(list_images(tmp_path / "val"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_written_wrongly_is_noticed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, out = list_images(root / "val"), tmp_path / "val"
    with monkeypatch.context() as patch, pytest.raises(UserError, match="not what was written"):
        values = iter(range(10**6))
        patch.setattr(pack_module.zlib, "crc32", lambda data: next(values))
        pack_val(files, out)
    assert not list(out.glob("*.tar"))
    pack_val(files, out)


def test_a_full_disk_is_one_line_and_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, out = list_images(root / "val"), tmp_path / "val"

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pack_module.os, "fsync", full)
        with pytest.raises(
            UserError, match="No space left on device.*run python pack_data.py again"
        ):
            pack_val(files, out)
    pack_val(files, out)


# ---- packed by others --------------------------------------------------------------------------


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))


def jpeg(seed: int) -> bytes:
    buffer = BytesIO()
    picture(seed).save(buffer, "jpeg")
    return buffer.getvalue()


def webdataset(folder: Path, *, prefix: str = "") -> Path:
    """Two shards of samples with their labels, 0 to 2."""
    for shard in range(2):
        members = {}
        for i in range(6):
            key = f"{prefix}{shard}{i:05}"
            members |= {f"{key}.cls": str(i % 3).encode(), f"{key}.jpg": jpeg(10 * shard + i)}
            members[f"{key}.json"] = b"{}"
        write_tar(folder / f"{shard:06}.tar", members)
    return folder


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
    for loader in open_splits(config, make_mesh(jax.devices()[:1])):
        assert loader is not None
        loader.close()


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
    with pytest.raises(UserError, match="2 images .* no class folder and have no .cls .* pack"):
        batches(tmp_path, "val")
    write_tar(tmp_path / "val" / "0.tar", {"a.jpg": jpeg(0), "b.jpg": jpeg(1), "b.cls": b"1"})
    with pytest.raises(UserError, match=r"1 images .* have no .cls beside them \(a.jpg, ...\)"):
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
    assert list(files.paths) == ["0.jpg"] and files.left_out == ("0.mask.png",)


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
    assert found.left_out == ("ant/soft.jpg",)
    hard, soft = (list(found.paths).index(f"ant/{name}.jpg") for name in ("hard", "0"))
    source = found.source(hard), found.source(soft)
    assert source[0].data == source[1].data  # type: ignore[union-attr]


# ---- shards that change ------------------------------------------------------------------------


def test_a_shard_that_is_replaced_during_a_run_is_noticed(root: Path, packed: Path) -> None:
    source = loader(packed, "val")
    shard = packed / "val" / "val-000000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:257] + b"x" + data[258:])  # the name's header, at the same length
    with pytest.raises(UserError, match="not as it was when it was listed: start the program ag"):
        list(source.batches(0))
    source.close()
    shard.write_bytes(data)
    assert len(batches(packed, "val")) == 3


def test_a_shard_that_is_gone_is_no_bad_image(packed: Path) -> None:
    source = loader(packed, "val", on_bad_image="skip")
    (packed / "val" / "val-000000.tar").rename(packed / "away")
    with pytest.raises(DataGone, match="can't read .*val-000000.tar: No such file"):
        list(source.batches(0))
    source.close()
    (packed / "away").rename(packed / "val" / "val-000000.tar")
    assert len(batches(packed, "val")) == 3


def test_a_shard_is_read_once_more(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, failures = os.pread, iter([OSError(116, "Stale file handle")])

    def failing(descriptor: int, length: int, start: int) -> bytes:
        if start == 0 and (error := next(failures, None)):
            raise error
        return pread(descriptor, length, start)

    whole = batches(packed, "val")
    monkeypatch.setattr(os, "pread", failing)
    assert same(batches(packed, "val"), whole)
    assert next(failures, None) is None


def test_a_copy_that_lacks_a_shard_is_refused(packed: Path) -> None:
    (packed / "val" / "val-000001.tar").unlink()
    with pytest.raises(UserError, match="1 of the 4 shards .* are missing .*val-000001.tar"):
        batches(packed, "val")
    index_beside(packed / "val").unlink()
    assert len(batches(packed, "val")) == 3


def test_a_shard_that_is_added_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the shards of the kept index have not changed."""
    monkeypatch.setattr(index_module, "MIN_IMAGES", 0)
    monkeypatch.setattr(index_module, "SETTLED", 0)
    val, index = tmp_path / "val", str(tmp_path / "index")
    write_tar(val / "0.tar", {"ant/a.jpg": jpeg(0)})
    assert len(open_index(val, index, print).files.paths) == 1
    write_tar(val / "1.tar", {"bee/a.jpg": jpeg(1)})
    assert open_index(val, index, print).files.class_names == ("ant", "bee")
    (val / "cat").mkdir()
    picture(0).save(val / "cat" / "a.jpg")
    assert open_index(val, index, print).files.class_names == ("cat",)


def test_the_index_beside_other_shards_is_not_used(root: Path, packed: Path) -> None:
    shutil.rmtree(root / "val" / "ant" / "deep")
    other = pack(root, packed.parent / "other")
    shutil.copy(index_beside(packed / "val"), index_beside(other / "val"))
    assert same(batches(other, "val"), batches(root, "val"))


def test_copied_shards_keep_their_index(packed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(packed, tmp_path / "copy")
    monkeypatch.setattr("seresnext_jax.data.index.list_shards", None)
    assert same(batches(tmp_path / "copy", "val"), batches(packed, "val"))


# ---- reading shard after shard -----------------------------------------------------------------


def test_reading_shard_after_shard_needs_shards(root: Path, packed: Path) -> None:
    with pytest.raises(UserError, match="--data.shards-at-once 2 needs shards.* leave it out"):
        loader(root, "train", shards_at_once=2)
    source = loader(packed, "train", shards_at_once=2)
    plain = loader(packed, "train")
    assert source.fingerprint != plain.fingerprint
    source.close(), plain.close()
    for split in SPLITS:
        shutil.rmtree(packed / split)
        options = {"images_per_shard": 5, "shuffled": split == "train"}
        files = list_images(root / split)
        pack_split(files, packed / split, progress=lambda *_: None, **options)  # type: ignore[arg-type]
    other = loader(packed, "train", shards_at_once=2)
    assert other.fingerprint != source.fingerprint, "the order is another one"
    other.close()


def test_an_epoch_by_shards_resumes_exactly(packed: Path) -> None:
    whole = batches(packed, "train", shards_at_once=2)
    source = loader(packed, "train", shards_at_once=2)
    rest = [tuple(map(np.asarray, b)) for _, b in zip(whole[4:], source.batches(4), strict=False)]
    source.close()
    assert same(rest, whole[4:])
    assert not same(whole, batches(packed, "train"))

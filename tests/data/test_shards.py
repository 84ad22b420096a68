"""Shards give what the same images give in folders, and are read only if they are as listed."""

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seresnext_jax.config import Backend, DataConfig
from seresnext_jax.data import index as index_module
from seresnext_jax.data.check import check_data
from seresnext_jax.data.gone import DataGone
from seresnext_jax.data.index import open_index
from seresnext_jax.data.open import SPLITS, Split
from seresnext_jax.data.shards import ShardList, index_beside
from seresnext_jax.errors import UserError
from tests.data.shards import (
    batches,
    jpeg,
    loader,
    pack,
    picture,
    same,
    write_folders,
    write_tar,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "folders")


@pytest.fixture
def packed(root: Path, tmp_path: Path) -> Path:
    return pack(root, tmp_path / "packed")


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
    assert "1 image(s) of val/ are also in train/" in lines[0]
    assert "ant/1.jpg can't be decoded" in lines[1] and "pack them again" in lines[1]
    picture(1).save(root / "val/ant/1.jpg")
    (root / "val/ant/again.jpg").unlink()
    assert check(pack(root, tmp_path / "right")) == []


# ---- shards that change ------------------------------------------------------------------------


def test_a_shard_that_is_replaced_during_a_run_is_noticed(root: Path, packed: Path) -> None:
    source = loader(packed, "val")
    shard = packed / "val" / "val-000000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:257] + b"x" + data[258:])  # the name's header, at the same length
    with pytest.raises(UserError, match="has changed since it was listed: start the program again"):
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
    larger = pack(root, packed.parent / "larger", images_per_shard=5)
    other = loader(larger, "train", shards_at_once=2)
    assert other.fingerprint != source.fingerprint, "the order is another one"
    other.close()


def test_an_epoch_by_shards_resumes_exactly(packed: Path) -> None:
    whole = batches(packed, "train", shards_at_once=2)
    source = loader(packed, "train", shards_at_once=2)
    rest = [tuple(map(np.asarray, b)) for _, b in zip(whole[4:], source.batches(4), strict=False)]
    source.close()
    assert same(rest, whole[4:])
    assert not same(whole, batches(packed, "train"))

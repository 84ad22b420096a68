"""What is on disk before a checkpoint counts, and before another one is deleted."""

import os
import shutil
from pathlib import Path

import pytest

from seresnext_jax.checkpoint import durable, save
from seresnext_jax.checkpoint.save import Checkpoints, settle_replaced
from seresnext_jax.checkpoint.store import read_meta, step_folders
from seresnext_jax.errors import UserError
from tests.checkpoint.metas import make_meta
from tests.checkpoint.test_store import break_files, fill, state


def test_the_order_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder is forced to disk, then renamed, its name forced, the old deleted."""
    folder = tmp_path / "new" / "checkpoints"
    done: list[tuple[str, str]] = []
    sync, delete = os.fsync, shutil.rmtree

    def record_sync(file: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{file}")))
        sync(file)

    def record_delete(path: Path) -> None:
        done.append(("delete", str(path)))
        delete(path)

    monkeypatch.setattr(durable.os, "fsync", record_sync)
    monkeypatch.setattr(save.shutil, "rmtree", record_delete)
    with Checkpoints(folder) as checkpoints:
        assert done == [("sync", str(tmp_path)), ("sync", str(folder.parent))]
        checkpoints.save(state(1), make_meta(step=1))
        checkpoints.wait()
        done.clear()
        checkpoints.save(state(2), make_meta(step=2))
        checkpoints.wait()
    assert [path.name for path in step_folders(folder)] == ["2"]
    assert done[-2:] == [("sync", str(folder)), ("delete", str(folder / "1"))]
    assert {action for action, _ in done[:-1]} == {"sync"}
    synced = [Path(path).relative_to(folder).parts for _, path in done[:-2]]
    before = {path[1:] for path in synced if path[0] != "2"}
    after = {path[1:] for path in synced if path[0] == "2"}
    found = {path.relative_to(folder / "2").parts for path in (folder / "2").rglob("*")} | {()}
    assert after == found
    assert before == found - {("commit_success.txt",)}, "all that is not written by the rename"


def test_a_file_system_that_cannot_sync_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable.os, "fsync", lambda _: fail(22))
    durable.sync_folder(tmp_path)
    monkeypatch.setattr(durable.os, "fsync", lambda _: fail(5))
    with pytest.raises(OSError, match="Input/output"):
        durable.sync_folder(tmp_path)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_replaced_checkpoint_outlasts_a_damaged_new_one(tmp_path: Path, damaged: bool) -> None:
    """As after a loss of power between the new one's name and the deletion."""
    fill(tmp_path, -1, [10.0])
    shutil.copytree(tmp_path / "1", tmp_path / "1.replaced")
    meta = (tmp_path / "1/meta/metadata").read_text()
    (tmp_path / "1/meta/metadata").write_text(meta.replace("10.0", "20.0"))
    if damaged:
        break_files(tmp_path / "1")
    settle_replaced(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert read_meta(tmp_path / "1").top1 == (10.0 if damaged else 20.0)


@pytest.mark.parametrize("back", [False, True])
def test_a_folder_that_is_removed_during_the_run(tmp_path: Path, back: bool) -> None:
    """One line, and no new folder with a part of the run in it; if it is back, the run goes on."""
    folder = tmp_path / "run" / "checkpoints"
    checkpoints = Checkpoints(folder, keep=-1)
    checkpoints.save(state(1), make_meta(step=1))
    checkpoints.wait()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"was removed or moved during the run: put it back"):
        checkpoints.save(state(2), make_meta(step=2))
    assert not folder.exists()
    if back:
        (tmp_path / "elsewhere").rename(tmp_path / "run")
        with Checkpoints(folder, keep=-1) as again:
            again.save(state(2), make_meta(step=2))
        assert [path.name for path in step_folders(folder)] == ["1", "2"]


@pytest.mark.parametrize(
    ("message", "raised"),
    [
        ("UNKNOWN: Gloo AllGather failed: Connection reset by peer", ValueError),
        ("UNKNOWN: Error writing {folder}/1: No space left on device", UserError),
    ],
)
def test_a_lost_process_is_not_called_a_full_disk(
    message: str, raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(action: object) -> None:
        raise ValueError(message.format(folder=tmp_path))

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), make_meta(step=1))
    monkeypatch.setattr(save, "on_one_process", fail)
    with pytest.raises(raised, match="reset" if raised is ValueError else "free space there"):
        checkpoints.wait()
    monkeypatch.undo()
    checkpoints.close()

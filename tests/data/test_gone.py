"""A folder that goes away or a disk that fails in a run: named, and no file of it is blamed."""

import builtins
import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seresnext_jax.config import Backend, DataConfig
from seresnext_jax.data import gone
from seresnext_jax.data.batch import Loader
from seresnext_jax.data.reader import MAX_READ_ERRORS
from seresnext_jax.errors import UserError
from tests.data.loaders import open_split

BACKENDS: list[Backend] = ["folder", "dali-cpu"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("ant", "bee"):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "val" / name / f"{i}.png")
    return tmp_path / "data"


def opened(root: Path, backend: Backend = "folder", policy: Any = "error") -> closing[Loader]:
    """The images, two in each step; closed at the end of the block."""
    data = DataConfig(
        root=str(root), backend=backend, image_size=16, workers=1, on_bad_image=policy
    )
    return closing(open_split(data, "val", n=2))


def count(source: Loader) -> int:
    """How many images count."""
    return sum(int(np.sum(batch.mask)) for batch in source.batches(0))


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gone, "RETRY_SECONDS", 0.0)


def failing(
    patch: pytest.MonkeyPatch, code: int, names: tuple[str, ...], times: int = 10**6
) -> Counter[str]:
    """Let the first `times` attempts to open each of some files fail; returns their numbers."""
    attempts: Counter[str] = Counter()

    def fails(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            name = "" if isinstance(path, int) else "/".join(os.fsdecode(path).split("/")[-2:])
            if name in names:
                attempts[name] += 1
                if attempts[name] <= times:
                    raise OSError(code, os.strerror(code), str(path))
            return real(path, *args, **options)

        return call

    patch.setattr(builtins, "open", fails(builtins.open))
    patch.setattr(os, "open", fails(os.open))
    return attempts


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lost", ["", "val", "val/bee"])
def test_the_folder_is_named(root: Path, backend: Backend, policy: str, lost: str) -> None:
    with opened(root, backend, policy) as source:
        assert count(source) == 8
        folder = root / lost if lost else root
        folder.rename(root.parent / "away")
        with pytest.raises(UserError) as caught:
            list(source.batches(0))
        assert str(caught.value).startswith(f"the folder {folder} is gone")
        assert source.bad_files == []


def test_a_folder_that_comes_back_costs_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = root.parent / "away"

    def back(seconds: float) -> None:
        with suppress(FileNotFoundError):  # it is back already
            away.rename(root)

    monkeypatch.setattr(gone.time, "sleep", back)
    with opened(root, "folder", "skip") as source:
        root.rename(away)
        assert count(source) == 8
        assert source.bad_files == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_that_passes_costs_nothing(
    root: Path, backend: Backend, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(root, backend) as source:
        attempts = failing(monkeypatch, code, ("bee/0.png", "bee/1.png"), times=1)
        assert count(source) == 8
        assert source.bad_files == []
        assert set(attempts) == {"bee/0.png", "bee/1.png"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_disk_that_does_not_answer_is_named(
    root: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(root, backend, "skip") as source, monkeypatch.context() as patch:
        failing(patch, errno.ESTALE, ("bee/0.png",))
        with pytest.raises(gone.DataGone, match="can't read .*bee/0.png: Stale file handle; check"):
            list(source.batches(0))
        assert source.bad_files == []
    with opened(root, backend, "skip") as source:  # the disk is available again
        assert count(source) == 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_that_the_disk_lost_are_bad_unless_there_are_many(
    root: Path, backend: Backend
) -> None:
    lost = [root / f"val/bee/lost{i:02}.png" for i in range(MAX_READ_ERRORS + 1)]
    for path in lost[:-1]:
        path.symlink_to("/proc/self/mem")  # reading it is an input/output error
    with opened(root, backend, "skip") as source:
        assert count(source) == 8
        assert sorted(source.bad_files) == list(map(str, lost[:-1]))
    lost[-1].symlink_to("/proc/self/mem")
    with opened(root, backend, "skip") as source:
        with pytest.raises(gone.DataGone, match="Input/output error; check the disk"):
            list(source.batches(0))


@pytest.mark.usefixtures("no_wait")
def test_the_file_is_to_blame_if_its_folder_is_there(root: Path) -> None:
    with opened(root) as source:
        (root / "val" / "ant" / "0.png").unlink()
        with pytest.raises(UserError, match="0.png: No such file"):
            list(source.batches(0))


def test_the_first_missing_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert gone._topmost_missing("gone/train/ant") == "gone"
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    shutil.rmtree(tmp_path / "a")
    assert gone._topmost_missing(str(tmp_path / "a" / "b" / "c")) == str(tmp_path / "a")

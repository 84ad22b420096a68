"""The walk over a dataset: nothing said of a good one, each fault of a bad one named."""

import builtins
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seresnext_jax.config import DataConfig
from seresnext_jax.data.check import CheckResult, check_data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, three images of each in either split, no two alike."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = draw.integers(0, 256, (12, 10 + i, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def walk(root: Path, num_classes: int = 2) -> CheckResult:
    told: list[tuple[int, int]] = []
    config = DataConfig(root=str(root), workers=2)
    found = check_data(config, num_classes, lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert all(total == len(told) for _, total in told)
    return found


def test_a_good_dataset_has_counts_and_no_problems(root: Path) -> None:
    found = walk(root)
    assert found.problems == []
    assert ("train: images", "6") in found.facts and ("val: classes", "2") in found.facts


def damage(name: str) -> Callable[[Path], None]:
    def truncate(root: Path) -> None:
        file = root / "train/cat/1.png"
        file.write_bytes(file.read_bytes()[:60])

    changes: dict[str, Callable[[Path], object]] = {
        "1.png can't be decoded": truncate,
        "2.png can't be decoded": lambda r: (r / "val/dog/2.png").write_bytes(b""),
        "are directly in": lambda r: shutil.copy(r / "val/cat/0.png", r / "val/ILSVRC_1.png"),
        "only in train/": lambda r: shutil.copytree(r / "train/cat", r / "train/owl"),
        "look like one class": lambda r: shutil.copytree(r / "train/cat", r / "train/Cat"),
        "has no images": lambda r: (r / "train/empty").mkdir(),
        "is not a folder": lambda r: shutil.rmtree(r / "val"),
        "also in train/": lambda r: shutil.copy(r / "train/cat/0.png", r / "val/dog/9.png"),
    }
    return changes[name]  # type: ignore[return-value]


@pytest.mark.parametrize(
    "fault",
    [
        "1.png can't be decoded",
        "2.png can't be decoded",
        "are directly in",
        "only in train/",
        "look like one class",
        "has no images",
        "is not a folder",
        "also in train/",
    ],
)
def test_a_fault_is_named_with_its_fix(root: Path, fault: str) -> None:
    damage(fault)(root)
    matching = [line for line in walk(root).problems if fault in line]
    assert len(matching) == 1 and ": " in matching[0] and "\n" not in matching[0]


def test_one_walk_finds_every_fault(root: Path) -> None:
    (root / "train/empty").mkdir()
    (root / "train/hollow").mkdir()
    damage("2.png can't be decoded")(root)
    (root / "train/cat/x.png").symlink_to("nowhere.png")
    damage("also in train/")(root)
    problems = walk(root).problems
    for text in (
        "class folder {root}/train/empty has no images",
        "class folder {root}/train/hollow has no images",
        "{root}/train has 4 class folders",
        "only in train/ (empty, hollow)",
        "{root}/train/cat/x.png can't be decoded (No such file",
        "{root}/val/dog/2.png can't be decoded",
        "1 image(s) of val/ are also in train/",
    ):
        assert sum(text.format(root=root) in line for line in problems) == 1, text
    assert len(problems) == 7


def test_a_file_that_only_the_walk_can_not_open(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal files in both splits, of which one can't be read: the other is then no duplicate."""
    shutil.copy(root / "train/cat/0.png", root / "val/dog/9.png")
    forbidden, real = str(root / "train/cat/0.png"), builtins.open

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if str(path) == forbidden:
            raise PermissionError(13, "Permission denied", forbidden)
        return real(path, *args, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    assert [line.partition(":")[0] for line in walk(root).problems] == [
        f"{forbidden} can't be decoded (Permission denied)"
    ]


def test_a_folder_that_can_not_be_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbidden, real = str(root / "val/dog"), os.scandir

    def refuse(path: Any = ".") -> Any:
        if str(path) == forbidden:
            raise PermissionError(13, "Permission denied", forbidden)
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (line,) = walk(root).problems
    assert line.startswith(f"can't list {forbidden}: Permission denied; ")


def test_another_number_of_classes_is_a_problem_of_both_splits(root: Path) -> None:
    lines = [line.partition(" has 2 class folders")[0] for line in walk(root, 3).problems]
    assert lines == [f"{root}/train", f"{root}/val"]

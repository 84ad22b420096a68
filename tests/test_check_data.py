"""The walk over a dataset: nothing said of a good one, each fault of a bad one named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seresnext_jax.config import DataConfig
from seresnext_jax.data.check import Findings, check_data


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


def walk(root: Path, num_classes: int = 2) -> Findings:
    return check_data(DataConfig(root=str(root), workers=2), num_classes, lambda done, total: None)


def test_a_good_dataset_has_counts_and_no_problems(root: Path) -> None:
    found = walk(root)
    assert found.problems == ()
    assert ("train: images", "6") in found.facts and ("val: classes", "2") in found.facts


def damage(name: str) -> Callable[[Path], None]:
    def truncate(root: Path) -> None:
        file = root / "train/cat/1.png"
        file.write_bytes(file.read_bytes()[:60])

    changes: dict[str, Callable[[Path], object]] = {
        "1.png can't be decoded": truncate,
        "2.png can't be decoded": lambda r: (r / "val/dog/2.png").write_bytes(b""),
        "lie in": lambda r: shutil.copy(r / "val/cat/0.png", r / "val/ILSVRC_1.png"),
        "only in train/": lambda r: shutil.copytree(r / "train/cat", r / "train/owl"),
        "look like one class": lambda r: shutil.copytree(r / "train/cat", r / "train/Cat"),
        "holds no image": lambda r: (r / "train/empty").mkdir(),
        "is no folder": lambda r: shutil.rmtree(r / "val"),
        "in train/ too": lambda r: shutil.copy(r / "train/cat/0.png", r / "val/dog/9.png"),
    }
    return changes[name]  # type: ignore[return-value]


@pytest.mark.parametrize(
    "fault",
    [
        "1.png can't be decoded",
        "2.png can't be decoded",
        "lie in",
        "only in train/",
        "look like one class",
        "holds no image",
        "is no folder",
        "in train/ too",
    ],
)
def test_a_fault_is_named_with_its_mend(root: Path, fault: str) -> None:
    damage(fault)(root)
    matching = [line for line in walk(root).problems if fault in line]
    assert len(matching) == 1 and ": " in matching[0] and "\n" not in matching[0]


def test_another_number_of_classes_is_a_problem_of_both_splits(root: Path) -> None:
    assert [line[:6] for line in walk(root, num_classes=3).problems] == ["train/", "val/ h"]

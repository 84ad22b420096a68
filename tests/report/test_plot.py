"""The plot of a report."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seresnext_jax.errors import UserError
from seresnext_jax.report.plot import plot_report
from seresnext_jax.report.report import Report


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """An empty one."""
    return Report(tmp_path, "raport.json", steps_per_epoch=4, keep_until_step=None)


def add_epoch(report: Report, epoch: int, loss: float, top1: float) -> None:
    report.train(epoch, 4, {"train.loss": loss, "train.lr": 0.1})
    report.epoch(epoch, {"train.loss": loss, "train.lr": 0.1, "val.loss": loss, "val.top1": top1})


def test_the_plot_is_a_picture_of_the_epochs(report: Report, tmp_path: Path) -> None:
    add_epoch(report, 0, loss=6.9, top1=10.0)
    plot_report(report.jsonl_path, tmp_path / "one.png")
    add_epoch(report, 1, loss=6.5, top1=12.0)
    add_epoch(report, 2, loss=math.nan, top1=3.0)
    plot_report(report.jsonl_path, tmp_path / "three.png")
    pictures = []
    for name in ("one.png", "three.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG" and image.width > 2 * image.height > 600
            pictures.append(np.asarray(image.convert("L")))
    assert pictures[0].std() > 5  # something is drawn
    assert not np.array_equal(pictures[0], pictures[1])


def test_a_plot_before_the_first_epoch(report: Report, tmp_path: Path) -> None:
    report.train(0, 2, {"train.loss": 6.9, "train.lr": 0.1})
    plot_report(report.jsonl_path, tmp_path / "none.png")
    with Image.open(tmp_path / "none.png") as image:
        assert image.format == "PNG"


def test_a_plot_that_cannot_be_written(report: Report, tmp_path: Path) -> None:
    add_epoch(report, 0, loss=6.9, top1=10.0)
    with pytest.raises(UserError, match="nowhere/report.png can't be written"):
        plot_report(report.jsonl_path, tmp_path / "nowhere/report.png")

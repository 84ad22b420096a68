"""The plot of a report."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seresnext_jax.errors import UserError
from seresnext_jax.report.panels import Line, Panel
from seresnext_jax.report.plot import draw_panels, plot_report
from seresnext_jax.report.report import Report
from tests.report.report_files import open_report


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """An empty one."""
    return open_report(tmp_path)


def add_epoch(report: Report, epoch: int, loss: float, top1: float) -> None:
    report.train(epoch, 4, {"train.loss": loss, "train.lr": 0.1})
    report.epoch(epoch, {"train.loss": loss, "train.lr": 0.1, "val.loss": loss, "val.top1": top1})


def plots(report: Report, folder: Path) -> dict[str, np.ndarray]:
    """The grey pictures that are drawn into a new folder, by their names."""
    folder.mkdir()
    plot_report(report.jsonl_path, folder)
    pictures = {}
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            pictures[path.stem] = np.asarray(image.convert("L"))
    return pictures


def test_the_plots_are_pictures_of_the_epochs(report: Report, tmp_path: Path) -> None:
    add_epoch(report, 0, loss=6.9, top1=10.0)
    one = plots(report, tmp_path / "one")
    add_epoch(report, 1, loss=6.5, top1=12.0)
    add_epoch(report, 2, loss=math.nan, top1=3.0)
    three = plots(report, tmp_path / "three")
    assert one.keys() == three.keys() == {"report", "loss_plot", "top1_plot"}
    for name, picture in one.items():
        assert picture.shape[1] > 600 and picture.std() > 5  # something is drawn
        assert not np.array_equal(picture, three[name])


def test_constant_values_have_no_chart_in_the_overview(tmp_path: Path) -> None:
    pictures = []
    for name, more in (("with", {"train.lr": 0.1}), ("without", {})):
        report = open_report(tmp_path / name)
        for epoch in range(2):
            report.epoch(epoch, {"train.loss": 1.0 / (1 + epoch), **more})
        pictures.append(plots(report, tmp_path / f"{name}-plots")["report"])
    assert np.array_equal(*pictures)


def test_the_axes_of_a_panel() -> None:
    line = Line("a", 0, ((1, 128.0), (2, 256.0), (3, None)))
    panels = [Panel("a", (line,)), Panel("b", (line,), log2=True), Panel("c", (line, line))]
    plain, log2, two = draw_panels([*panels[:2], replace(panels[2], from_zero=True)]).axes
    assert (plain.get_yscale(), log2.get_yscale()) == ("linear", "log")
    assert plain.get_ylim()[0] > 0 >= two.get_ylim()[0]
    assert plain.get_legend() is None and two.get_legend() is not None


@pytest.mark.parametrize("steps", [0, 1])
def test_a_plot_before_the_first_epoch(report: Report, tmp_path: Path, steps: int) -> None:
    report.parameters({})
    for _ in range(steps):
        report.train(0, 2, {"train.loss": 6.9, "train.lr": 0.1})
    assert "report" in plots(report, tmp_path / "none")


def test_a_plot_that_cannot_be_written(report: Report, tmp_path: Path) -> None:
    add_epoch(report, 0, loss=6.9, top1=10.0)
    with pytest.raises(UserError, match="nowhere/report.png can't be written"):
        plot_report(report.jsonl_path, tmp_path / "nowhere")

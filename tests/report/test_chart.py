"""Charts as SVG: axes, gaps, spikes, words for screen readers."""

import re
from xml.etree import ElementTree

import pytest

from seresnext_jax.report.chart import Axis, draw, thin
from seresnext_jax.report.panels import Line, Panel, Point


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (41.2, 96.7, [0, 20, 40, 60, 80, 100]),
        (83.3, 100.0, [80, 85, 90, 95, 100]),
        (0.0, 0.04, [0, 0.01, 0.02, 0.03, 0.04]),
        (-3.0, 2.0, [-3, -2, -1, 0, 1, 2]),
        (5.0, 5.0, [4.4, 4.6, 4.8, 5.0, 5.2, 5.4, 5.6]),
    ],
)
def test_an_axis_names_round_values(low: float, high: float, ticks: list[float]) -> None:
    axis = Axis(low, high, pixels=(100, 0))
    assert axis.ticks == pytest.approx(ticks)
    assert 0 <= axis.place(high) <= axis.place(low) <= 100


def test_an_axis_of_powers_of_two() -> None:
    axis = Axis(128, 4096, pixels=(0, 100), log2=True)
    assert axis.ticks == [128, 256, 512, 1024, 2048, 4096]
    assert axis.place(128) == 0 and axis.place(4096) == 100
    assert axis.place(1024) == pytest.approx(60)
    assert Axis(0, 8, pixels=(0, 100), log2=True).ticks == [0, 2, 4, 6, 8], "0 has no logarithm"


def test_an_axis_of_epochs_names_whole_numbers() -> None:
    assert Axis(0.02, 1.0, pixels=(0, 100), whole=True).ticks == [1]
    assert Axis(0.02, 90.0, pixels=(0, 100), whole=True).ticks == [20, 40, 60, 80]


def test_spikes_stay_when_points_are_left_out() -> None:
    points: list[Point] = [(float(x), 1.0) for x in range(10_000)]
    points[1234], points[7777], points[5000] = (1234.0, 50.0), (7777.0, -50.0), (5000.0, None)
    kept = thin(points, most=300)
    assert len(kept) <= 300 and points[1234] in kept and points[7777] in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert thin(points[:300], most=300) == points[:300]
    gap: list[Point] = [(float(x), None if 100 <= x < 300 else 1.0) for x in range(400)]
    assert any(y is None for _, y in thin(gap, most=40))


def test_the_axis_of_a_first_epoch_begins_at_zero() -> None:
    chart = draw(Panel("loss", (Line("loss", 0, ((0.25, 2.0), (0.5, 1.0))),)))
    assert re.findall(r'y="202">([^<]+)', chart) == ["0"]


@pytest.mark.parametrize(("points", "dots"), [(30, 30), (31, 0)])
def test_a_short_line_has_dots(points: int, dots: int) -> None:
    line = Line("loss", 0, tuple((x, float(x)) for x in range(points)))
    assert draw(Panel("loss", (line,))).count("<circle") == dots


def test_a_missing_value_is_a_gap() -> None:
    line = Line("loss", 0, ((1, 2.0), (2, 1.5), (3, None), (4, 1.0), (5, 0.5)))
    (path,) = re.findall(r'class="line s0" d="(M[^"]+L[^"]+)"', draw(Panel("loss", (line,))))
    assert re.sub(r"[\d. ]", "", path) == "MLML"


def test_the_chart_is_described_in_words_and_well_formed() -> None:
    lines = (
        Line("run <a> & b", 1, ((1, 10.0), (2, 40.0), (3, 30.0))),
        Line("nothing", 0, ((1, None),)),
    )
    figure = ElementTree.fromstring(draw(Panel("top-1 (%)", lines)))
    image = figure.find("svg")
    assert image is not None and image.get("role") == "img"
    assert image.get("aria-label") == (
        "top-1 (%) by epoch. run <a> & b: from 10 at epoch 1, to 30 at epoch 3, "
        "lowest 10 at epoch 1, highest 40 at epoch 2"
    )
    titles = [title.text for title in figure.iter("title")]
    assert titles[1] == "run <a> & b, epoch 2: 40"
    assert [item.find("svg") is not None for item in figure.iter("li")] == [True]


def test_lines_differ_in_more_than_colour() -> None:
    from importlib.resources import files

    css = files("seresnext_jax.report").joinpath("page.css").read_text()
    styles = re.findall(r"\.s\d \{ --colour: [^;]+;([^}]*)\}", css)
    assert len(styles) == len(set(styles)) == 8


def test_an_axis_from_zero_and_large_values_on_it() -> None:
    line = Line("scale", 0, ((1, 1_200_000.0), (2, 1_199_000.0)))
    near = re.findall(r'class="y">([^<]+)', draw(Panel("loss scale", (line,))))
    whole = re.findall(r'class="y">([^<]+)', draw(Panel("loss scale", (line,), from_zero=True)))
    assert near[0] == "1.2M" and whole == ["0", "500000", "1M", "1.5M"]


def test_a_chart_without_a_value_is_left_out() -> None:
    assert draw(Panel("loss", (Line("loss", 0, ((1, None),)),))) == ""

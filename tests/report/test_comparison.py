"""Runs side by side, those of the original included."""

import json
import re
from pathlib import Path

import pytest

from seresnext_jax.report.comparison import (
    comparison,
    comparison_page,
    difference_tables,
    read_runs,
    result_table,
)
from seresnext_jax.report.options import find_differences, show_value
from seresnext_jax.report.panels import compared_panels
from tests.programs import done, error_line, run
from tests.report.report_files import NVIDIA, STEPS
from tests.report.runs import add_epoch, open_run, write_run


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two workspaces that differ in the learning rate, and one with the original's report."""
    write_run(tmp_path / "a", 10.0, 40.0, 30.0)
    write_run(tmp_path / "b", 20.0, 50.0, **{"optim.lr": 0.2, "lr": 0.2})
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "raport.json").write_text(NVIDIA)
    return [tmp_path / name for name in ("a", "b", "nvidia")]


def test_the_table_of_results(folders: list[Path]) -> None:
    table = result_table(read_runs(folders))
    rows = {name: cells for name, *cells in table.rows}
    assert table.header == ("", "a", "b", "nvidia")
    assert rows["epochs"] == ["3 of 3", "2 of 2", "1 of 2"]
    assert rows["best top-1"] == ["40.00 % (epoch 2)", "50.00 % (epoch 2)", "12.00 % (epoch 1)"]
    assert rows["last val top-1"] == ["30.00 %", "50.00 %", "12.00 %"]
    assert rows["last train loss"] == ["3.3333", "2.0000", "6.5000"]
    assert rows["train throughput"] == ["105.3 img/s", "103.5 img/s", "–"]
    assert rows["data wait"] == ["1.7 %", "1.2 %", "–"]
    assert rows["time"][2] == "4 s"
    lines = list(table.lines())
    assert len({line.index(cell) for line, cell in zip(lines, ["a", "3 of 3"], strict=False)}) == 1


def test_the_planned_epochs_are_those_of_the_last_start(tmp_path: Path) -> None:
    add_epoch(open_run(tmp_path, epochs=2), 0, 2.0, 50.0)
    open_run(tmp_path, resumed_at=STEPS, epochs=5)
    assert ("epochs", "1 of 5") in result_table(read_runs([tmp_path])).rows


def test_options_that_differ(folders: list[Path]) -> None:
    ours = read_runs(folders[:2])
    assert comparison(ours)["differences"] == {"epochs": [3, 2], "optim.lr": [0.1, 0.2]}
    everyone = read_runs(folders)
    assert comparison(everyone)["differences"] == {"epochs": [3, 2, 2], "lr": [0.1, 0.2, 0.256]}
    (table,) = difference_tables(ours).values()
    assert ("optim.lr", "0.1", "0.2") in table.rows


def test_hardware_that_differs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 10.0)
    write_run(tmp_path / "b", 10.0, environment={"device": "8 x A100", "jax": "0.10.2"})
    tables = difference_tables(read_runs([tmp_path / "a", tmp_path / "b"]))
    assert tables["Hardware and versions that differ"].rows == [("device", "1 x cpu", "8 x A100")]


def test_an_option_recorded_under_two_names_is_given_once() -> None:
    both = [{"data.root": "/a", "data": "/a", "optim.lr": None, "lr": 1.0, "epochs": 3}]
    both.append({"data.root": "/b", "data": "/b", "optim.lr": 0.5, "lr": 0.5, "epochs": 3})
    assert find_differences(both) == {
        "data.root": ["/a", "/b"],
        "optim.lr": [None, 0.5],
        "lr": [1.0, 0.5],  # the one that was derived
    }


def test_values_of_options_for_people() -> None:
    values = [None, "", True, False, 0.875, "fp16", [0.08, 1.0], (30, 60)]
    shown = ["none", "none", "yes", "no", "0.875", "fp16", "0.08, 1.0", "30, 60"]
    assert [show_value(value) for value in values] == shown


def test_the_page_draws_each_run_in_each_chart(folders: list[Path]) -> None:
    html = comparison_page(read_runs(folders))
    assert "Comparison of 3 runs" in html and "mean of the rates" in html
    charts = re.findall(r"<figure>.*?</figure>", html, flags=re.DOTALL)
    top1 = next(chart for chart in charts if "<figcaption>val top-1 (%)" in chart)
    assert re.findall(r"</svg>([^<]+)</li>", top1) == ["a", "b", "nvidia"]
    throughput = next(chart for chart in charts if "<figcaption>train throughput" in chart)
    assert re.findall(r"</svg>([^<]+)</li>", throughput) == ["a", "b"]
    assert not compared_panels(read_runs(folders[:1])), "there is nothing to compare"


def test_runs_of_one_name_are_called_by_their_paths(tmp_path: Path) -> None:
    write_run(tmp_path / "x" / "run", 10.0)
    write_run(tmp_path / "y" / "run", 20.0)
    labels = [label for label, _ in read_runs([tmp_path / "x/run", tmp_path / "y/run"])]
    assert labels == [str(tmp_path / "x/run"), str(tmp_path / "y/run")]


def test_the_command(folders: list[Path], tmp_path: Path) -> None:
    command = ["-m", "seresnext_jax.compare", *map(str, folders)]
    page, numbers = tmp_path / "c.html", tmp_path / "c.json"
    out = done([*command, "--html", str(page), "--json", str(numbers)]).stdout
    assert "50.00 % (epoch 2)" in out and "Options that differ" in out
    assert "mean of the rates" in out and "Comparison of 3 runs" in page.read_text()
    found = json.loads(numbers.read_text())
    assert [entry["name"] for entry in found["runs"]] == ["a", "b", "nvidia"]
    assert found["runs"][1]["results"]["best.top1"] == 50.0
    assert "at least two runs" in error_line(run(command[:3]))
    assert "does not exist: name a workspace" in error_line(run([*command, str(tmp_path / "no")]))

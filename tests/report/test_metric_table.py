"""The table of metrics: names, labels, values over a run, and its copy in the documentation."""

import math
from pathlib import Path

import pytest

from seresnext_jax.report.metrics import METRICS, find_metric, in_order, metric_rows, summarize
from seresnext_jax.report.sinks import DLLoggerFile, Record, read_report
from tests.programs import ROOT


@pytest.mark.parametrize(
    ("name", "value", "row"),
    [
        ("loss", 6.90123, ("loss", "6.9012")),
        ("train.loss", math.nan, ("train loss", "nan")),
        ("val.top1", 79.3341, ("val top-1", "79.33 %")),
        ("val_ema.top10", 50, ("top-10 of the moving average", "50.00 %")),
        ("best.top1", 80.03, ("best top-1", "80.03 %")),
        ("train.total_ips", 812.345, ("train throughput", "812.3 img/s")),
        ("val.compute_latency_at99", 0.01234, ("val latency, 99 %", "12.34 ms")),
        ("train.grad_scale", 128.0, ("train loss scale", "128")),
        ("val.f1", 0.5, ("val f1", "0.5")),
    ],
)
def test_metrics_for_people(name: str, value: float, row: tuple[str, str]) -> None:
    assert metric_rows({name: value, "val.ce": 1.0}, [name, "val.count", name]) == [row]


def test_metrics_are_in_the_order_of_the_table_then_by_number_then_by_split() -> None:
    names = ["train.loss", "val.loss", "val_ema.loss", "val.top1", "val_ema.top1", "val.top5"]
    names += ["val.top10", "train.lr", "val.f1"]
    assert in_order(sorted(names)) == in_order(reversed(names)) == names


def test_weights_and_their_average_share_a_chart() -> None:
    panels = {find_metric(f"{split}.total_ips").panel for split in ("val", "val_ema")}
    assert panels == {"val throughput (img/s)"}


def test_the_metrics_of_a_run_from_those_of_its_epochs() -> None:
    epochs: list[dict[str, float | None]] = [
        {"val.top1": 50.0, "val.top5": 80.0, "train.loss": 2.0, "train.total_ips": 10.0},
        {"val.top1": 70.0, "val.top5": 90.0, "train.loss": 1.0, "train.total_ips": 20.0},
        {"val.top1": 60.0, "val.top5": 95.0, "train.loss": None, "train.total_ips": 60.0},
    ]
    lasts = {"train.lr": 0.1, "train.bad_images": 2.0, "val.loss": None}
    run = summarize([epoch | lasts for epoch in epochs])
    assert math.isnan(run.pop("val.loss"))
    assert run == {
        "val.top1": 70.0,
        "val.top5": 95.0,
        "train.loss": 1.0,
        "train.total_ips": 30.0,
        "train.lr": 0.1,
        "train.bad_images": 6.0,
    }
    assert summarize([]) == {}


def test_a_metric_without_a_row_is_not_described(tmp_path: Path) -> None:
    file = DLLoggerFile(tmp_path / "report")
    file.write(Record("epoch", (0,), 4, {"val.f1": 0.5}))
    (record,) = read_report(tmp_path / "report")
    assert record["data"] == {"val.f1": 0.5}


def test_a_name_has_one_row() -> None:
    names = [metric.name.replace("{n}", "7") for metric in METRICS]
    assert [find_metric(name).meaning for name in names] == [row.meaning for row in METRICS]
    assert len({row.meaning for row in METRICS}) == len(METRICS)


def test_the_documentation_has_the_table_of_metrics() -> None:
    rows = [
        "| name | unit | for people | meaning | of the run |",
        "| --- | --- | --- | --- | --- |",
    ]
    for metric in METRICS:
        names = ", ".join(f"`{split}.{metric.name}`" for split in metric.splits.split())
        facts = (names, metric.unit or "", metric.label, metric.meaning, metric.over_run)
        rows.append(f"| {' | '.join(facts)} |")
    text = (ROOT / "docs/report.md").read_text()
    assert text.partition("## Metrics")[2].partition("\n| ")[2] == "\n".join(rows)[2:] + "\n"

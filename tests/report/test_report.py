"""The report's files line by line, and their continuation after a stop."""

import json
import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seresnext_jax.errors import UserError
from seresnext_jax.report.report import Report
from seresnext_jax.report.sinks import PREFIX, Record, read_report

RAPORT = "experiment_raport.json"
STEPS = 4
"""Steps of an epoch in these tests; each second one is reported."""

# Written by NVIDIA's program with dllogger 1.1.0 (values shortened).
NVIDIA = """\
DLLL {"timestamp": "1795449850.640052", "datetime": "2026-11-23 16:04:10.640052+00:00", \
"elapsedtime": "1.1e-05", "type": "LOG", "step": "PARAMETER", "data": {"lr": 0.256}}
DLLL {"timestamp": "1795449850.7", "elapsedtime": "0.06", "datetime": "2026-11-23 16:04:10.7+00:00"\
, "type": "METADATA", "metric": "train.loss", "metadata": {"unit": null, "format": ":.5f"}}
DLLL {"timestamp": "1795449851.7", "datetime": "2026-11-23 16:04:11.7+00:00", \
"elapsedtime": "1.06", "type": "LOG", "step": [0, 20], "data": {"train.loss": 6.9}}
DLLL {"timestamp": "1795449851.8", "datetime": "2026-11-23 16:04:11.8+00:00", \
"elapsedtime": "1.16", "type": "LOG", "step": [], "data": {"train.loss": 6.9, "val.top1": null}}
"""
TRAIN = {
    "train.loss": 6.9,
    "train.compute_ips": 100.5,
    "train.total_ips": 99.5,
    "train.lr": 0.032,
    "train.grad_scale": 128.0,
    "train.skipped_steps": 0.0,
    "train.data_time": 0.01,
    "train.compute_time": 0.5,
}
VAL = {"val.top1": 10.0, "val.top5": 30.0, "val.loss": 5.5, "val.ce": 5.25, "val.data_time": 0.1}
VAL |= {"val.compute_latency": 0.2, "val.compute_latency_at99": 0.3}


def open_report(folder: Path, keep_until_step: int | None = None, **options: Any) -> Report:
    return Report(folder, RAPORT, steps_per_epoch=STEPS, keep_until_step=keep_until_step, **options)


def logs(folder: Path) -> list[dict[str, Any]]:
    """The LOG records of the DLLogger file."""
    return [r for r in read_report(folder / RAPORT) if r["type"] == "LOG"]


def plain(folder: Path) -> list[dict[str, Any]]:
    """The records of the plain file."""
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


def run_epoch(report: Report, epoch: int, *, first: int = 2) -> None:
    """Report the steps of an epoch, its evaluation and itself; the loss tells the step."""
    for iteration in range(first, STEPS + 1, 2):
        report.train(epoch, iteration, TRAIN | {"train.loss": epoch * STEPS + iteration})
    report.evaluation(epoch, STEPS, 3, VAL)
    report.epoch(epoch, TRAIN | VAL)


def assert_complete(folder: Path, epochs: int) -> None:
    """Each event of each epoch is there once, in order, in both files."""
    steps, events = [], []
    for epoch in range(epochs):
        for step in ([epoch, 2], [epoch, 4], [epoch, 4, 3], [epoch]):
            steps += [step, step]  # the metrics for the console, the others
        events += [("train", 4 * epoch + 2), ("train", 4 * epoch + 4)]
        events += [("evaluation", 4 * epoch + 4), ("epoch", 4 * epoch + 4)]
    assert [r["step"] for r in logs(folder)] == steps
    assert [(r["event"], r["step"]) for r in plain(folder)] == events


# ---- the DLLogger file -------------------------------------------------------------------------


def test_each_line_is_a_prefix_and_json(tmp_path: Path) -> None:
    run_epoch(open_report(tmp_path), 0)
    for line in (tmp_path / RAPORT).read_text().splitlines():
        assert line.startswith("DLLL {")
        record = json.loads(line[5:])
        assert float(record["timestamp"]) > 0 and isinstance(record["timestamp"], str)
        assert float(record["elapsedtime"]) >= 0 and isinstance(record["elapsedtime"], str)
        moment = datetime.fromisoformat(record["datetime"])
        assert moment.utcoffset() == timedelta(0)
        assert moment.timestamp() == pytest.approx(float(record["timestamp"]), abs=1e-3)


def test_the_records_have_the_fields_of_the_original(tmp_path: Path) -> None:
    report = open_report(tmp_path)
    report.parameters({"optim.lr": 0.256})
    report.train(0, 2, TRAIN)
    report.summary(TRAIN)
    ours = {}
    for record in read_report(tmp_path / RAPORT):
        ours[record["type"], json.dumps(record.get("step"))] = set(record)
    (tmp_path / "nvidia").write_text(NVIDIA)
    for record in read_report(tmp_path / "nvidia"):
        step = [0, 2] if record.get("step") == [0, 20] else record.get("step")
        assert ours[record["type"], json.dumps(step)] == set(record)


def test_parameters(tmp_path: Path) -> None:
    open_report(tmp_path).parameters({"optim.lr": 0.256, "optim.lr_steps": (30, 60)})
    (record,) = logs(tmp_path)
    assert record["step"] == "PARAMETER"
    assert record["data"] == {"optim.lr": 0.256, "optim.lr_steps": [30, 60]}


def test_train_record_is_split_in_two(tmp_path: Path) -> None:
    open_report(tmp_path).train(3, 20, TRAIN)
    first, second = logs(tmp_path)
    verbose = {"train.data_time", "train.compute_time"}
    assert first["step"] == second["step"] == [3, 20]
    assert second["data"] == {"train.data_time": 0.01, "train.compute_time": 0.5}
    assert first["data"] == {k: v for k, v in TRAIN.items() if k not in verbose}


def test_evaluation_record_is_split_in_two(tmp_path: Path) -> None:
    open_report(tmp_path).evaluation(0, 1251, 20, VAL)
    first, second = logs(tmp_path)
    assert first["step"] == second["step"] == [0, 1251, 20]
    assert set(second["data"]) == {"val.data_time", "val.compute_latency_at99"}
    assert set(first["data"]) == set(VAL) - set(second["data"])


def test_epoch_and_summary_steps(tmp_path: Path) -> None:
    report = open_report(tmp_path)
    report.epoch(7, TRAIN)
    report.summary(TRAIN)
    assert [r["step"] for r in logs(tmp_path)] == [[7], [7], [], []]


def test_metadata_comes_once_and_before_the_metric(tmp_path: Path) -> None:
    report = open_report(tmp_path)
    report.train(0, 2, TRAIN)
    report.train(0, 4, TRAIN)
    records = read_report(tmp_path / RAPORT)
    kinds = [r["type"] for r in records]
    assert kinds == ["METADATA"] * len(TRAIN) + ["LOG"] * 4


def test_the_learning_rate_has_empty_metadata_as_in_the_original(tmp_path: Path) -> None:
    open_report(tmp_path).train(0, 2, {"train.lr": 0.1})
    record = read_report(tmp_path / RAPORT)[0]
    assert (record["metric"], record["metadata"]) == ("train.lr", {})


@pytest.mark.parametrize(
    ("metric", "unit", "form"),
    [
        ("train.loss", None, ":.5f"),
        ("train.compute_ips", "images/s", ":.2f"),
        ("train.total_ips", "images/s", ":.2f"),
        ("train.data_time", "s", ":.5f"),
        ("train.compute_time", "s", ":.5f"),
        ("train.grad_scale", None, ":.5f"),
        ("val.top1", "%", ":.2f"),
        ("val.top10", "%", ":.2f"),
        ("val_ema.loss", None, ":.5f"),
        ("val_ema.compute_latency", "s", ":.5f"),
        ("val.compute_latency_at100", "s", ":.5f"),
    ],
)
def test_metadata(tmp_path: Path, metric: str, unit: str | None, form: str) -> None:
    open_report(tmp_path).epoch(0, {metric: 1.0})
    record = read_report(tmp_path / RAPORT)[0]
    assert record["metric"] == metric
    assert record["metadata"] == {"unit": unit, "format": form}


# ---- the plain file ----------------------------------------------------------------------------


def test_plain_records(tmp_path: Path) -> None:
    report = open_report(tmp_path)
    report.parameters({"seed": 1})
    report.train(2, 3, {"train.loss": float(np.float32(0.5))})
    report.evaluation(2, 4, 9, {"val.top1": 50})
    report.epoch(2, {"train.loss": 0.5})
    report.summary({"best.top1": 50.0})
    records = plain(tmp_path)
    for record in records:
        assert record.pop("time") > 0
    assert records == [
        {"event": "parameters", "data": {"seed": 1}},
        {"event": "train", "epoch": 2, "iteration": 3, "step": 11, "metrics": {"train.loss": 0.5}},
        {
            "event": "evaluation",
            "epoch": 2,
            "iteration": 4,
            "val_iteration": 9,
            "step": 12,
            "metrics": {"val.top1": 50},
        },
        {"event": "epoch", "epoch": 2, "step": 12, "metrics": {"train.loss": 0.5}},
        {"event": "summary", "metrics": {"best.top1": 50.0}},
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_is_null(tmp_path: Path, value: float) -> None:
    open_report(tmp_path).train(0, 2, {"train.loss": value})
    assert plain(tmp_path)[0]["metrics"] == {"train.loss": None}
    assert logs(tmp_path)[0]["data"] == {"train.loss": None}


def test_a_line_is_on_disk_at_once(tmp_path: Path) -> None:
    report = open_report(tmp_path)
    report.train(0, 2, TRAIN)
    assert len(plain(tmp_path)) == 1 and len(logs(tmp_path)) == 2


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    report = open_report(tmp_path / "run", enabled=False)
    report.parameters({})
    run_epoch(report, 0)
    assert not (tmp_path / "run").exists()


# ---- a second start ----------------------------------------------------------------------------


def test_a_new_run_keeps_the_files_of_earlier_ones(tmp_path: Path) -> None:
    for run in range(3):
        open_report(tmp_path).epoch(run, TRAIN)
    for run, ending in enumerate((".1", ".2", "")):
        assert read_report(tmp_path / f"{RAPORT}{ending}")[-1]["step"] == [run]
        assert read_report(tmp_path / f"report.jsonl{ending}")[-1]["epoch"] == run


def test_files_moved_aside_share_a_number(tmp_path: Path) -> None:
    (tmp_path / f"{RAPORT}.1").write_text("of a run before this program\n")
    open_report(tmp_path).epoch(0, TRAIN)
    open_report(tmp_path)
    moved = {f"{RAPORT}.1", f"{RAPORT}.2", "report.jsonl.2"}
    assert {p.name for p in tmp_path.iterdir()} == moved | {"report.html"}


@pytest.mark.parametrize("until", [0, 2, 4, 6, 8, 10])
def test_a_resumed_run_reports_each_step_once(tmp_path: Path, until: int) -> None:
    """Whatever was reported after the checkpoint at step `until` is reported again, once."""
    first = open_report(tmp_path)
    for epoch in range(3):
        run_epoch(first, epoch)
    first.summary(TRAIN)
    started, done = divmod(until, STEPS)
    second = open_report(tmp_path, keep_until_step=until)
    for epoch in range(started, 3):
        run_epoch(second, epoch, first=done + 2 if epoch == started else 2)
    assert_complete(tmp_path, 3)


def test_a_resumed_run_keeps_the_evaluation_of_the_epoch_it_follows(tmp_path: Path) -> None:
    report = open_report(tmp_path)
    run_epoch(report, 0)
    run_epoch(report, 1)
    open_report(tmp_path, keep_until_step=STEPS)
    assert_complete(tmp_path, 1)


def test_an_evaluation_made_again_replaces_the_first(tmp_path: Path) -> None:
    """A run killed after an epoch's report, whose checkpoint is of before the evaluation."""
    run_epoch(open_report(tmp_path), 0)
    resumed = open_report(tmp_path, keep_until_step=STEPS)
    resumed.evaluation(0, STEPS, 3, VAL | {"val.top1": 77.0})
    resumed.epoch(0, TRAIN | VAL | {"val.top1": 77.0})
    assert_complete(tmp_path, 1)
    assert [r["metrics"].get("val.top1") for r in plain(tmp_path)] == [None, None, 77.0, 77.0]


def test_an_evaluation_on_its_own_is_kept(tmp_path: Path) -> None:
    """--evaluate at the end of epoch 0 reports iteration 0 of the next."""
    run_epoch(open_report(tmp_path), 0)
    open_report(tmp_path, keep_until_step=STEPS).evaluation(1, 0, 3, VAL)
    open_report(tmp_path, keep_until_step=STEPS)
    assert [r["step"] for r in logs(tmp_path)][-4:] == [[0], [0], [1, 0, 3], [1, 0, 3]]
    assert len(plain(tmp_path)) == 5


def test_the_summary_stays_until_training_continues(tmp_path: Path) -> None:
    first = open_report(tmp_path)
    first.parameters({"seed": 1})
    run_epoch(first, 0)
    first.summary(TRAIN)
    before = len(read_report(tmp_path / RAPORT))
    second = open_report(tmp_path, keep_until_step=STEPS)
    second.parameters({"seed": 1})
    second.evaluation(1, 0, 3, VAL)
    events = [r["event"] for r in plain(tmp_path)]
    second.summary(VAL)
    assert [r["event"] for r in plain(tmp_path)] == events and events.count("summary") == 1
    assert events.count("parameters") == 2  # one for each start
    run_epoch(second, 1)
    assert "summary" not in [r["event"] for r in plain(tmp_path)]
    second.summary(TRAIN)
    assert [r["event"] for r in plain(tmp_path)].count("summary") == 1
    assert len(read_report(tmp_path / RAPORT)) > before


def test_a_resumed_run_describes_no_metric_twice(tmp_path: Path) -> None:
    run_epoch(open_report(tmp_path), 0)
    run_epoch(open_report(tmp_path, keep_until_step=STEPS), 1)
    metrics = [r["metric"] for r in read_report(tmp_path / RAPORT) if r["type"] == "METADATA"]
    assert len(metrics) == len(set(metrics)) == len(TRAIN | VAL)


@pytest.mark.parametrize("name", [RAPORT, "report.jsonl"])
@pytest.mark.parametrize("left", [1, 7, -3, -1])
def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path, name: str, left: int) -> None:
    first = open_report(tmp_path)
    run_epoch(first, 0)
    path = tmp_path / name
    whole = path.read_text()
    first.train(1, 2, TRAIN)
    path.write_text(whole + path.read_text().removeprefix(whole).splitlines()[-1][:left])
    run_epoch(open_report(tmp_path, keep_until_step=STEPS), 1)
    assert_complete(tmp_path, 2)


def test_a_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    run_epoch(open_report(tmp_path), 0)
    for name in (RAPORT, "report.jsonl"):
        path = tmp_path / name
        path.write_text(path.read_text().removesuffix("\n"))
    run_epoch(open_report(tmp_path, keep_until_step=STEPS), 1)
    assert_complete(tmp_path, 2)


def test_a_run_resumed_into_an_empty_folder(tmp_path: Path) -> None:
    open_report(tmp_path / "new", keep_until_step=STEPS).epoch(1, TRAIN)
    assert [r["step"] for r in logs(tmp_path / "new")] == [[1], [1]]


# ---- reading, errors ---------------------------------------------------------------------------


def test_the_originals_file_is_read(tmp_path: Path) -> None:
    (tmp_path / RAPORT).write_text(NVIDIA)
    parameters, metadata, train, summary = read_report(tmp_path / RAPORT)
    assert parameters["data"] == {"lr": 0.256}
    assert metadata["metadata"] == {"unit": None, "format": ":.5f"}
    assert (train["step"], train["data"]) == ([0, 20], {"train.loss": 6.9})
    assert summary["data"]["val.top1"] is None


def test_the_originals_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / RAPORT
    path.write_text(NVIDIA)
    report = Report(tmp_path, RAPORT, steps_per_epoch=100, keep_until_step=20)
    assert path.read_text() == NVIDIA  # with its summary, until training goes on
    report.train(0, 40, {"train.loss": 6.5})
    *kept, added = path.read_text().splitlines()
    assert kept == NVIDIA.splitlines()[:3] and '"step": [0, 40]' in added


@pytest.mark.parametrize("damage", ["not json", PREFIX + "{", "17", ""])
def test_a_file_that_is_not_a_report_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / RAPORT
    path.write_text(NVIDIA + damage + "\n" + NVIDIA)
    with pytest.raises(UserError, match=r"experiment_raport\.json, line 5 is not a report"):
        read_report(path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workspace"):
        open_report(tmp_path / "file" / "run").parameters({})


def test_files_beside_the_report_that_cannot_be_written(tmp_path: Path) -> None:
    report = open_report(tmp_path)
    run_epoch(report, 0)
    report.attach("plan.json", "{}")
    assert (tmp_path / "plan.json").read_text() == "{}"
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="config.json can't be written"):
        report.attach("config.json", "{}")


@pytest.mark.parametrize("name", ["", ".", "checkpoints"])
@pytest.mark.parametrize("until", [None, STEPS])
def test_a_folder_is_not_moved_aside(tmp_path: Path, name: str, until: int | None) -> None:
    """--raport-file "" must not rename the workspace with its checkpoints."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="--raport-file .* is a folder"):
        Report(tmp_path / "run", name, steps_per_epoch=STEPS, keep_until_step=until)
    assert [p.relative_to(tmp_path) for p in sorted(tmp_path.rglob("*"))] == [
        Path("run"),
        Path("run/checkpoints"),
    ]


def test_a_report_beside_a_new_workspace(tmp_path: Path) -> None:
    """--raport-file with a path of its own; the second file is in the workspace."""
    elsewhere = tmp_path / "logs" / RAPORT
    report = Report(tmp_path / "run", str(elsewhere), steps_per_epoch=STEPS, keep_until_step=None)
    report.epoch(0, TRAIN)
    assert read_report(elsewhere)[-1]["step"] == [0]
    assert [r["event"] for r in plain(tmp_path / "run")] == ["epoch"]


@pytest.mark.parametrize(
    "name", ["report.jsonl", "report.html", "report.png", "config.json", "checkpoints"]
)
def test_the_file_needs_a_name_of_its_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"--raport-file {name} is taken"):
        Report(tmp_path, name, steps_per_epoch=1, keep_until_step=None)
    assert not list(tmp_path.iterdir())


def test_a_file_that_lost_its_summary_gets_one(tmp_path: Path) -> None:
    """A run was killed between the two files' summaries."""
    first = open_report(tmp_path)
    run_epoch(first, 0)
    before = (tmp_path / "report.jsonl").read_text()
    first.summary(TRAIN)
    (tmp_path / "report.jsonl").write_text(before)
    whole = (tmp_path / RAPORT).read_text()
    open_report(tmp_path, keep_until_step=STEPS).summary(TRAIN)
    assert (tmp_path / RAPORT).read_text() == whole
    assert plain(tmp_path)[-1]["event"] == "summary"


# ---- more places -------------------------------------------------------------------------------


def test_every_record_goes_to_every_sink(tmp_path: Path) -> None:
    class Memory:
        def __init__(self) -> None:
            self.records: list[Record] = []

        def write(self, record: Record) -> None:
            self.records.append(record)

    report, memory = open_report(tmp_path), Memory()
    report.sinks.append(memory)
    report.parameters({"seed": 1})
    run_epoch(report, 0)
    report.summary({"best.top1": math.nan})
    assert [(r.event, r.position, r.step) for r in memory.records] == [
        ("parameters", None, None),
        ("train", (0, 2), 2),
        ("train", (0, 4), 4),
        ("evaluation", (0, 4, 3), 4),
        ("epoch", (0,), 4),
        ("summary", (), None),
    ]
    assert memory.records[0].data == {"seed": 1} and memory.records[3].data == VAL
    assert memory.records[-1].data == {"best.top1": None}
    assert [r.event for r in memory.records] == [r["event"] for r in plain(tmp_path)]

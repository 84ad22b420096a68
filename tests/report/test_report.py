"""The report's files line by line, and what else a record reaches."""

import json
import math
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from seresnext_jax.errors import UserError
from seresnext_jax.report.sinks import PREFIX, Record, read_report
from tests.report.report_files import (
    NVIDIA,
    RAPORT,
    STEPS,
    TRAIN,
    VAL,
    assert_complete,
    logs,
    open_report,
    plain,
    run_epoch,
)

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


def fields(report: Path) -> dict[tuple[str, int], set[str]]:
    """The fields of each kind of record, by its type and the length of its step."""
    return {(r["type"], len(r.get("step", ""))): set(r) for r in read_report(report)}


def test_the_records_have_the_fields_of_the_original(tmp_path: Path) -> None:
    report = open_report(tmp_path)
    report.parameters({"optim.lr": 0.256})
    run_epoch(report, 0)
    report.summary(TRAIN)
    (tmp_path / "nvidia").write_text(NVIDIA)
    assert fields(tmp_path / RAPORT) == fields(tmp_path / "nvidia")


def test_the_options_are_the_parameters(tmp_path: Path) -> None:
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
def test_a_metric_is_described_by_its_unit_and_format(
    tmp_path: Path, metric: str, unit: str | None, form: str
) -> None:
    open_report(tmp_path).epoch(0, {metric: 1.0})
    record = read_report(tmp_path / RAPORT)[0]
    assert record["metric"] == metric
    assert record["metadata"] == {"unit": unit, "format": form}


# ---- the plain file ----------------------------------------------------------------------------


def test_a_plain_record_has_its_event_position_step_and_metrics(tmp_path: Path) -> None:
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


# ---- reading, errors ---------------------------------------------------------------------------


def test_the_originals_file_is_read(tmp_path: Path) -> None:
    (tmp_path / RAPORT).write_text(NVIDIA)
    parameters, _, metadata, train, *_, epoch, summary = read_report(tmp_path / RAPORT)
    assert parameters["data"] == {"lr": 0.256, "arch": "resnet18", "epochs": 2}
    assert metadata["metadata"] == {"unit": None, "format": ":.5f"}
    assert (train["step"], train["data"]) == ([0, 20], {"train.loss": 6.9, "lr": 0.032})
    assert math.isnan(epoch["data"]["val.loss"])
    assert summary["data"]["val.top1"] is None


@pytest.mark.parametrize("damage", [b"not json", PREFIX.encode() + b"{", b"17", b"", b"\xff"])
def test_a_file_that_is_not_a_report_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / RAPORT
    path.write_bytes(NVIDIA.encode() + damage + b"\n" + NVIDIA.encode())
    line = len(NVIDIA.splitlines()) + 1
    with pytest.raises(UserError, match=rf"experiment_raport\.json, line {line} is not a report"):
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
        open_report(tmp_path / "run", until, name=name)
    assert [p.relative_to(tmp_path) for p in sorted(tmp_path.rglob("*"))] == [
        Path("run"),
        Path("run/checkpoints"),
    ]


def test_a_report_beside_a_new_workspace(tmp_path: Path) -> None:
    """--raport-file with a path of its own; the second file is in the workspace."""
    elsewhere = tmp_path / "logs" / RAPORT
    report = open_report(tmp_path / "run", name=str(elsewhere))
    report.epoch(0, TRAIN)
    assert read_report(elsewhere)[-1]["step"] == [0]
    assert [r["event"] for r in plain(tmp_path / "run")] == ["epoch"]


@pytest.mark.parametrize(
    "name", ["report.jsonl", "report.html", "report.png", "config.json", "checkpoints"]
)
def test_the_file_needs_a_name_of_its_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"--raport-file {name} is taken"):
        open_report(tmp_path, name=name)
    assert not list(tmp_path.iterdir())


# ---- more places -------------------------------------------------------------------------------


def test_every_record_goes_to_every_sink(tmp_path: Path) -> None:
    class Memory:
        def __init__(self) -> None:
            self.records: list[Record] = []

        def write(self, record: Record) -> None:
            self.records.append(record)

    report, memory = open_report(tmp_path), Memory()
    report.others["memory"] = memory
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


@pytest.mark.parametrize("name", ["report.html", "memory"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(28, "No space left on device"), "No space left"), (KeyError(), "KeyError")],
)
def test_a_sink_that_fails_is_left_out_with_a_warning(
    tmp_path: Path, name: str, error: Exception, reason: str
) -> None:
    class Full:
        def write(self, record: Record) -> None:
            raise error

    warnings: list[str] = []
    report = open_report(tmp_path, warn=warnings.append)
    report.others[name] = Full()
    for epoch in range(2):
        run_epoch(report, epoch)
    (warning,) = warnings
    assert warning.startswith(f"{name} is no longer updated, the run continues without it: ")
    assert reason in warning
    assert_complete(tmp_path, 2)


def test_a_file_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    report = open_report(tmp_path)
    run_epoch(report, 0)
    (tmp_path / "report.jsonl").unlink()
    (tmp_path / "report.jsonl").mkdir()
    with pytest.raises(UserError, match=r"report\.jsonl can't be written .* another --workspace"):
        report.train(1, 2, TRAIN)

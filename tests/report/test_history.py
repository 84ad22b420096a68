"""Runs read from reports of both formats and of the original."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from seresnext_jax.errors import UserError
from seresnext_jax.report.history import read_history
from tests.report.report_files import NVIDIA, STEPS
from tests.report.runs import ENVIRONMENT, OPTIONS, add_epoch, open_run, write_run


def test_a_workspace_is_read_as_its_run_was_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "one", 10.0, 40.0)
    history = read_history(tmp_path / "one")
    assert history.name == "one" and history.ended
    assert [s.epochs for s in history.steps] == [0.5, 1.0, 1.5, 2.0]
    assert [s.epochs for s in history.epochs] == [1, 2]
    assert [s.metrics["val.top1"] for s in history.epochs] == [10.0, 40.0]
    assert history.epochs[0].metrics["val.top5"] is None  # not finite
    assert history.summary["val.top1"] == 40.0
    assert history.summary["train.total_ips"] == pytest.approx((110.0 + 102.5) / 2)
    (start,) = history.starts
    assert (start.recipe, start.deviations, start.environment) == ("configs/a.py", {}, ENVIRONMENT)
    assert history.start.options == OPTIONS | {"epochs": 2, "workspace": str(tmp_path / "one")}


def test_both_files_of_a_run_tell_the_same(tmp_path: Path) -> None:
    write_run(tmp_path, 10.0, 40.0)
    plain = read_history(tmp_path / "report.jsonl")
    dlll = read_history(tmp_path / "raport.json")
    assert replace(dlll, path=plain.path, starts=plain.starts) == plain
    assert [s.options for s in dlll.starts] == [s.options for s in plain.starts]


def test_the_originals_report(tmp_path: Path) -> None:
    (tmp_path / "raport.json").write_text(NVIDIA)
    history = read_history(tmp_path)  # a folder without report.jsonl
    (step,) = history.steps
    assert step.epochs == 0.5  # of 40 iterations
    assert step.metrics == {"train.loss": 6.9, "train.lr": 0.032, "train.data_time": 0.25}
    (epoch,) = history.epochs  # the evaluation's own records are of parts of it
    assert epoch.metrics == {"train.loss": 6.5, "val.top1": 12.0, "val.loss": None}
    (start,) = history.starts
    assert start.options == {
        "lr": 0.256,
        "arch": "resnet18",
        "epochs": 2,
        "model.num_classes": 1000,
    }
    assert start.deviations is None and history.seconds == 4.0


def test_a_resumed_run_has_two_starts(tmp_path: Path) -> None:
    add_epoch(open_run(tmp_path), 0, 2.0, 50.0)
    add_epoch(open_run(tmp_path, resumed_at=STEPS, batch_size=7), 1, 1.0, 60.0)
    history = read_history(tmp_path)
    first, second = history.starts
    assert first.time <= first.last_time <= second.time <= second.last_time
    assert second.options["batch_size"] == 7 and not history.ended
    assert [s.epochs for s in history.epochs] == [1, 2]


def test_an_evaluation_without_training(tmp_path: Path) -> None:
    run = open_run(tmp_path, evaluate=True)
    run.evaluation(0, 0, 3, {"val.top1": 70.0})
    history = read_history(tmp_path)
    (sample,) = history.epochs
    assert (sample.epochs, sample.metrics) == (0.0, {"val.top1": 70.0})
    assert history.start.options["evaluate"]
    add_epoch(run, 0, 2.0, 50.0)
    assert [s.epochs for s in read_history(tmp_path).epochs] == [0.0, 1.0]


def test_the_options_are_those_of_the_last_start_that_trained(tmp_path: Path) -> None:
    add_epoch(open_run(tmp_path), 0, 2.0, 50.0)
    open_run(tmp_path, resumed_at=STEPS, evaluate=True, batch_size=7)
    history = read_history(tmp_path)
    assert len(history.starts) == 2 and "batch_size" not in history.start.options


def test_the_plan_tells_the_length_of_an_unfinished_first_epoch(tmp_path: Path) -> None:
    open_run(tmp_path).train(0, 2, {"train.loss": 1.0})
    (tmp_path / "plan.json").write_text(json.dumps({"steps_per_epoch": 8}))
    assert read_history(tmp_path).steps[0].epochs == 0.25


@pytest.mark.parametrize("plan", ["", "{", "[8]"])
def test_a_damaged_plan_is_left_out(tmp_path: Path, plan: str) -> None:
    open_run(tmp_path).train(0, 2, {"train.loss": 1.0})
    (tmp_path / "plan.json").write_text(plan)
    history = read_history(tmp_path)
    assert history.plan == {} and history.steps[0].epochs == 1.0


def test_a_report_without_options_has_one_start(tmp_path: Path) -> None:
    records = [{"time": t, "event": "epoch", "epoch": t, "metrics": {}} for t in (5, 9)]
    (tmp_path / "report.jsonl").write_text("\n".join(map(json.dumps, records)))
    history = read_history(tmp_path)
    (start,) = history.starts
    assert (start.time, start.options, history.seconds) == (5, {}, 4)


def test_facts_of_another_type_are_ordinary_options(tmp_path: Path) -> None:
    """As from another program."""
    wrong = {"recipe": 3, "deviations": ["x"], "environment": "y"}
    open_run(tmp_path, **wrong)
    (start,) = read_history(tmp_path).starts
    assert (start.recipe, start.deviations, start.environment) == ("", None, None)
    assert wrong.items() <= start.options.items()


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "none", "none does not exist: name a workspace"),
        ({"config.json": "{}"}, "", r"has no report \(report.jsonl\): name a workspace"),
        ({"config.json": "{}"}, "config.json", "config.json has no records of a run: name"),
        ({"report.jsonl": ""}, "", "report.jsonl has no records of a run"),
        ({"report.jsonl": "x\n{}"}, "", "report.jsonl, line 1 is not a report record"),
        ({"a.json": 'DLLL {"step": [0], "data": {}}'}, "", "a.json has a record whose time or"),
        (
            {"report.jsonl": '{"event": "epoch", "epoch": 0, "metrics": {}}'},
            "",
            "has a record whose",
        ),
        (
            {"report.jsonl": '{"time": 1, "event": "epoch", "epoch": "x", "metrics": {}}'},
            "",
            "time or step is missing or wrong: name another report",
        ),
    ],
)
def test_what_is_not_a_report(
    tmp_path: Path, files: dict[str, str], name: str, message: str
) -> None:
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read_history(tmp_path / name)
    write_run(tmp_path / "run", 50.0)
    assert read_history(tmp_path / "run").ended  # a workspace, as the message says

"""Reports of made-up runs, and the records in their two files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seresnext_jax.report.report import Report
from seresnext_jax.report.sinks import read_report

RAPORT = "experiment_raport.json"
STEPS = 4
"""Steps of an epoch in these tests; each second one is reported."""

# Written by NVIDIA's program with dllogger 1.1.0 (values shortened).
NVIDIA = """\
DLLL {"timestamp": "100.5", "datetime": "2026-11-23 16:04:10+00:00", "elapsedtime": "1.1e-05", \
"type": "LOG", "step": "PARAMETER", "data": {"lr": 0.256, "arch": "resnet18", "epochs": 2}}
DLLL {"timestamp": "100.6", "datetime": "2026-11-23 16:04:10+00:00", "elapsedtime": "0.1", \
"type": "LOG", "step": "PARAMETER", "data": {"model.num_classes": 1000}}
DLLL {"timestamp": "100.7", "elapsedtime": "0.06", "datetime": "2026-11-23 16:04:10.7+00:00"\
, "type": "METADATA", "metric": "train.loss", "metadata": {"unit": null, "format": ":.5f"}}
DLLL {"timestamp": "101.5", "datetime": "2026-11-23 16:04:11+00:00", "elapsedtime": "1", \
"type": "LOG", "step": [0, 20], "data": {"train.loss": 6.9, "lr": 0.032}}
DLLL {"timestamp": "101.5", "datetime": "2026-11-23 16:04:11+00:00", "elapsedtime": "1", \
"type": "LOG", "step": [0, 20], "data": {"train.data_time": 0.25}}
DLLL {"timestamp": "102.5", "datetime": "2026-11-23 16:04:12+00:00", "elapsedtime": "2", \
"type": "LOG", "step": [0, 40, 20], "data": {"val.top1": 11.0}}
DLLL {"timestamp": "103.5", "datetime": "2026-11-23 16:04:13+00:00", "elapsedtime": "3", \
"type": "LOG", "step": [0], "data": {"train.loss": 6.5, "val.top1": 12.0, "val.loss": NaN}}
DLLL {"timestamp": "104.5", "datetime": "2026-11-23 16:04:14+00:00", "elapsedtime": "4", \
"type": "LOG", "step": [], "data": {"train.loss": 6.5, "val.top1": null}}
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


def open_report(
    folder: Path,
    keep_until_step: int | None = None,
    *,
    name: str = RAPORT,
    warn: Callable[[str], None] = pytest.fail,
    **options: Any,
) -> Report:
    """A report; a warning fails the test unless it is expected."""
    return Report(
        folder,
        name,
        steps_per_epoch=STEPS,
        keep_until_step=keep_until_step,
        warn=warn,
        **options,
    )


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

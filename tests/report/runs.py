"""Runs as reports, without training."""

import math
from pathlib import Path
from typing import Any

from seresnext_jax.report.report import Report
from tests.report.report_files import STEPS, open_report

ENVIRONMENT = {"device": "1 x cpu", "jax": "0.10.2"}
OPTIONS: dict[str, Any] = {
    "model.arch": "resnet18",
    "arch": "resnet18",
    "epochs": 3,
    "optim.lr": 0.1,
    "lr": 0.1,
    "workspace": "/runs/one",
}

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
"type": "LOG", "step": [], "data": {"train.loss": 6.5, "val.top1": 12.0}}
"""


def train_metrics(loss: float) -> dict[str, float]:
    return {
        "train.loss": loss,
        "train.lr": 0.1 / (1 + loss),
        "train.grad_scale": 128.0,
        "train.skipped_steps": 0.0,
        "train.total_ips": 100.0 + loss,
        "train.data_time": 0.001 * loss,
        "train.compute_time": 0.3,
    }


def open_run(folder: Path, *, resumed_at: int | None = None, **options: Any) -> Report:
    """A report in `folder` with its options recorded."""
    report = open_report(folder, resumed_at, name="raport.json")
    recorded = {"recipe": "configs/a.py", "deviations": {}, "environment": ENVIRONMENT}
    report.parameters(OPTIONS | {"workspace": str(folder)} | recorded | options)
    return report


def add_epoch(report: Report, epoch: int, loss: float, top1: float) -> None:
    """Report an epoch with its steps."""
    for iteration in range(2, STEPS + 1, 2):
        report.train(epoch, iteration, train_metrics(loss + iteration / 100))
    val = {"val.loss": loss + 0.5, "val.top1": top1, "val.top5": math.nan}
    report.evaluation(epoch, STEPS, 3, val)
    report.epoch(epoch, train_metrics(loss) | val)


def write_run(folder: Path, *top1: float, **options: Any) -> Report:
    """A finished run with an epoch for each accuracy; the loss is 100 / accuracy."""
    report = open_run(folder, epochs=len(top1), **options)
    for epoch, accuracy in enumerate(top1):
        add_epoch(report, epoch, 100 / accuracy, accuracy)
    report.summary({"best.top1": max(top1)})
    return report

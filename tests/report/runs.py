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

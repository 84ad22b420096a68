"""What a run says at its start, after an epoch, and at its end."""

import json
import sys
from pathlib import Path

from seresnext_jax.checkpoint.meta import Progress
from seresnext_jax.config import Config, Plan, flatten, to_dict
from seresnext_jax.data.batch import Loader
from seresnext_jax.report.console import Console
from seresnext_jax.report.dllogger import Report


def open_report(config: Config, plan: Plan, console: Console, *, resumed_step: int) -> Report:
    """Open the report, and put the configuration and what follows from it into the workspace.

    An evaluation is added to whatever the report holds.
    """
    report = Report(
        Path(config.workspace),
        config.raport_file,
        steps_per_epoch=plan.steps_per_epoch,
        keep_until_step=sys.maxsize if config.evaluate else resumed_step or None,
        enabled=console.enabled,
    )
    report.parameters(flatten(config))
    if not config.evaluate:
        for name, value in {"config": config, "plan": plan}.items():
            report.attach(f"{name}.json", json.dumps(to_dict(value), indent=2) + "\n")
    console.table("Plan", [(name, str(value)) for name, value in to_dict(plan).items()])
    return report


def epoch_line(config: Config, epoch: int, results: dict[str, float], *, best: bool) -> str:
    """One line on a finished epoch."""
    parts = [f"epoch {epoch + 1}/{config.epochs}", f"loss {results['train.loss']:.4f}"]
    if "val.top1" in results:
        parts += [
            f"val loss {results['val.loss']:.4f}",
            f"top-1 {results['val.top1']:.2f} %{' (best)' if best else ''}",
            f"top-{config.topk} {results[f'val.top{config.topk}']:.2f} %",
        ]
    if "train.total_ips" in results:
        parts.append(f"{results['train.total_ips']:.1f} img/s")
    return "  ".join(parts)


def outcome_rows(config: Config, progress: Progress) -> list[tuple[str, str]]:
    """The end-of-run table, without the files."""
    rows = []
    if progress.best_epoch >= 0:
        best = f"{progress.best_top1:.2f} % (epoch {progress.best_epoch + 1})"
        rows.append(("best top-1", best))
    labels = {
        "val.top1": ("top-1", "%"),
        f"val.top{config.topk}": (f"top-{config.topk}", "%"),
        "val_ema.top1": ("top-1 of the average", "%"),
        "train.total_ips": ("training", "img/s"),
        "train.compute_ips": ("training without data wait", "img/s"),
    }
    for name, (label, unit) in labels.items():
        if name in progress.results:
            rows.append((label, f"{progress.results[name]:.2f} {unit}"))
    return rows


def list_bad_images(loaders: list[Loader]) -> None:
    """Name the files that were left out; each process those that it met."""
    console = Console(enabled=True)
    for path in [path for loader in loaders for path in loader.bad_files]:
        console.warn(f"left out, can't be decoded: {path}")

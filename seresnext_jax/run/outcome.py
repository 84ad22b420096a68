"""What a run prints and writes at its start, after each epoch and at its end."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from seresnext_jax.checkpoint.meta import Progress
from seresnext_jax.cli import load_recipe
from seresnext_jax.commands import command
from seresnext_jax.config import Config
from seresnext_jax.data.batch import Loader
from seresnext_jax.errors import printable
from seresnext_jax.plan import Plan
from seresnext_jax.report.console import Console
from seresnext_jax.report.history import read_history
from seresnext_jax.report.metrics import metric_rows, summarize
from seresnext_jax.report.names import HTML_NAME, PLOT_NAME
from seresnext_jax.report.plot import plot_report
from seresnext_jax.report.report import Report
from seresnext_jax.report.sinks import read_report
from seresnext_jax.run.environment import describe_environment
from seresnext_jax.run.parameters import report_parameters
from seresnext_jax.run.recipe import find_deviations, recipe_rows
from seresnext_jax.run.start import checkpoints_folder


def open_report(
    argv: list[str], config: Config, plan: Plan, console: Console, *, resumed_step: int
) -> Report:
    """Open the report; write the options, their deviations from the recipe, and the plan.

    With --evaluate an existing report is continued, and no other file is written.
    """
    report = Report(
        Path(config.workspace),
        config.raport_file,
        steps_per_epoch=plan.steps_per_epoch,
        keep_until_step=sys.maxsize if config.evaluate else resumed_step or None,
        warn=console.warn,
        trackers=config.report_to,
        enabled=console.enabled,
    )
    recipe, options = load_recipe(argv)
    report.parameters(
        report_parameters(config, plan)
        | {"recipe": recipe, "deviations": find_deviations(options, config)}
        | {"command": f"{command('train')} {shlex.join(argv)}"}
        | {"environment": describe_environment()}
    )
    if not config.evaluate:
        for name, value in {"config": asdict(config), "plan": asdict(plan)}.items():
            report.attach(f"{name}.json", json.dumps(value, indent=2) + "\n")
    console.table("Plan", [(name, str(value)) for name, value in asdict(plan).items()])
    return report


def epoch_line(config: Config, epoch: int, results: dict[str, float], *, best: bool) -> str:
    """One line about epoch `epoch` (from 0), after it has finished."""
    names = ("train.loss", "val.loss", "val.top1", f"val.top{config.topk}", "train.total_ips")
    parts = [" ".join(row) for row in metric_rows(results, names)]
    for split in ("val", "val_ema"):
        count, images = (results.get(f"{split}.{name}", 0) for name in ("count", "images"))
        if count < images:
            parts.append(f"{split} on {count:.0f} of {images:.0f} images")
    return "  ".join([f"epoch {epoch + 1}/{config.epochs}", *parts, *["best so far"] * best])


def report_outcome(config: Config, progress: Progress, report: Report, console: Console) -> None:
    """Finish the report of a run, draw the plots and print the outcome.

    Raises:
      UserError: a file can't be written.
    """
    if not console.enabled:
        return
    rows = []
    if progress.best_epoch >= 0:
        ((label, value),) = metric_rows({"best.top1": progress.best_top1})
        rows = [(label, f"{value} (epoch {progress.best_epoch + 1})")]
    if progress.results:
        report.summary(run_summary(progress, report))
    plot_report(report.jsonl_path, report.folder)
    names = ["val.top1", f"val.top{config.topk}", "val_ema.top1"]
    names += ["train.total_ips", "train.compute_ips"]
    rows += metric_rows(progress.results, names)
    rows += recipe_rows(read_history(report.jsonl_path).start)
    if not config.no_checkpoints:
        rows.append(("checkpoint", str(checkpoints_folder(config))))
    page, plot = (report.folder / name for name in (HTML_NAME, PLOT_NAME))
    rows += [("report", str(report.dlll_path)), ("page", str(page)), ("plot", str(plot))]
    console.table("Outcome", rows)


def run_summary(progress: Progress, report: Report) -> dict[str, float]:
    """The metrics of the original's last record, and ``best.top1`` and ``last.*``.

    ``val.top1`` and ``best.top1`` are from the best epoch, even if the report lacks that epoch;
    ``last.<metric>`` are from the last epoch.
    """
    records = read_report(report.jsonl_path)
    summary = summarize([r["metrics"] for r in records if r["event"] == "epoch"])
    if progress.best_epoch >= 0:
        summary |= {"val.top1": progress.best_top1, "best.top1": progress.best_top1}
    return summary | {f"last.{name}": value for name, value in progress.results.items()}


def list_other_files(loaders: list[Loader], console: Console) -> None:
    """Print a line for each split with files that are not read as images."""
    for loader in loaders:
        if loader.not_listed:
            console.note(f"files that are not read as images in {loader.not_listed}")


def list_bad_images(loaders: list[Loader]) -> None:
    """Warn of each file that was left out; each process prints those that it tried to read."""
    console = Console(enabled=True)
    for path in [path for loader in loaders for path in loader.bad_files]:
        console.warn(f"left out, can't be decoded: {printable(path)}")

"""Several runs side by side: their results, curves, and what differs in their options."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from seresnext_jax.errors import printable
from seresnext_jax.report.history import History, read_history
from seresnext_jax.report.html import page, table
from seresnext_jax.report.metrics import metric_rows
from seresnext_jax.report.options import find_differences, show_value
from seresnext_jax.report.panels import compared_panels
from seresnext_jax.report.run_page import best_epoch, charts, data_wait, show_duration

Run = tuple[str, History]
"""A unique label, and the run."""

NOTE_ON_THE_ORIGINAL = (
    "The original's throughput is the mean of the rates of its steps, and its train loss is "
    "divided by the number of forward passes per step."
)


@dataclass(frozen=True)
class Table:
    """Text in columns."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def lines(self) -> Iterable[str]:
        """The table as lines of text."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        for row in (self.header, *self.rows):
            yield "  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)).rstrip()


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read reports; a run is named after its workspace, or by its path if two have the same name.

    Raises:
      UserError: a path has no report, or a damaged one.
    """
    histories = [read_history(path) for path in paths]
    names = [history.name for history in histories]
    labels = [printable(p) if names.count(n) > 1 else n for p, n in zip(paths, names, strict=True)]
    return list(zip(labels, histories, strict=True))


def is_of_the_original(history: History) -> bool:
    """Whether NVIDIA's program wrote the report; it lacks this project's options."""
    return "optim.lr_schedule" not in history.start.options


def results(history: History) -> dict[str, float]:
    """The metrics of a run to compare, by name; `result_table` formats them.

    The prefix ``best.`` means the best epoch, ``last.`` the last one, any other name the whole run.
    """
    last, over_run = history.epochs[-1:], history.summary
    found: dict[str, float] = {"epochs": last[0].epochs if last else 0}
    if best := best_epoch(history):
        found |= {"best.top1": best[0], "best.epoch": best[1]}
    for name, value in last[0].metrics.items() if last else ():
        if value is not None and (name.endswith(".loss") or ".top" in name):
            found[f"last.{name}"] = value
    for name in ("train.total_ips", "val.total_ips", "train.skipped_steps"):
        if math.isfinite(value := over_run.get(name, math.nan)):
            found[name] = value
    if (share := data_wait(history)) is not None:
        found["data_wait_percent"] = share
    return found | {"seconds": history.seconds}


def result_table(runs: Sequence[Run]) -> Table:
    """The results of the runs, with one column for each run."""
    rows: dict[str, list[str]] = {}
    for number, (_, history) in enumerate(runs):
        for label, text in _result_rows(history):
            rows.setdefault(label, ["–"] * len(runs))[number] = text
    header = ("", *(label for label, _ in runs))
    return Table(header, [(label, *cells) for label, cells in rows.items()])


def _result_rows(history: History) -> Iterable[tuple[str, str]]:
    found = results(history)
    planned = history.start.options.get("epochs")
    yield "epochs", f"{found['epochs']:g}" + (f" of {planned}" if planned else "")
    if "best.top1" in found:
        yield "best top-1", f"{found['best.top1']:.2f} % (epoch {found['best.epoch']:g})"
    last = {name.removeprefix("last."): v for name, v in found.items() if name.startswith("last.")}
    for label, text in metric_rows(last):
        yield f"last {label}", text
    yield from metric_rows(found, ["train.total_ips", "val.total_ips", "train.skipped_steps"])
    if "data_wait_percent" in found:
        yield "data wait", f"{found['data_wait_percent']:.1f} %"
    yield "time", show_duration(found["seconds"])


def difference_tables(runs: Sequence[Run]) -> dict[str, Table]:
    """Tables of the options, hardware and versions that differ between the runs, by title."""
    header = ("", *(label for label, _ in runs))
    sources = {
        "Options that differ": [history.start.options for _, history in runs],
        "Hardware and versions that differ": [h.start.environment or {} for _, h in runs],
    }
    return {
        title: Table(header, [(name, *map(show_value, v)) for name, v in found.items()])
        for title, values in sources.items()
        if (found := find_differences(values))
    }


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """The comparison as plain data, for JSON."""
    return {
        "runs": [
            {"name": label, "report": str(history.path), "results": results(history)}
            for label, history in runs
        ],
        "differences": find_differences([history.start.options for _, history in runs]),
    }


def comparison_page(runs: Sequence[Run]) -> str:
    """The comparison as HTML."""
    title = f"Comparison of {len(runs)} runs"
    found = result_table(runs)
    parts = [f"<h1>{title}</h1>", table("Results", found.header, found.rows, numbers=True)]
    if any(is_of_the_original(history) for _, history in runs):
        parts.append(f'<p class="weak">{escape(NOTE_ON_THE_ORIGINAL)}</p>')
    parts += ["<h2>Curves</h2>", charts(compared_panels(runs))]
    for heading, differing in difference_tables(runs).items():
        parts += [f"<h2>{heading}</h2>", table(heading, differing.header, differing.rows)]
    return page(title, "\n".join(parts))

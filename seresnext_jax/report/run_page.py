"""The page of a run: its results, curves, options, hardware and versions."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from pathlib import Path

from seresnext_jax.report.chart import draw
from seresnext_jax.report.history import History, read_history
from seresnext_jax.report.html import page, table, tiles, write_page
from seresnext_jax.report.metrics import find_metric, in_order, metric_rows
from seresnext_jax.report.options import find_differences, show_value
from seresnext_jax.report.panels import Panel, run_panels
from seresnext_jax.report.sinks import Record


class RunPage:
    """The sink that writes the page of a run after each epoch and at the end."""

    def __init__(self, report: Path, html: Path) -> None:
        """Make the page `html` from `report`, which must get each record before this sink."""
        self._report, self._html = report, html

    def write(self, record: Record) -> None:
        """Write the page if the record completes an epoch or the run.

        Raises:
          UserError: the report is damaged, or the page can't be written.
        """
        if record.event in ("epoch", "summary"):
            write_page(self._html, run_page(read_history(self._report)))


def run_page(history: History) -> str:
    """The page as HTML."""
    parts = [f"<h1>{escape(history.name)}</h1>", _headline(history), tiles(_results(history))]
    parts += ["<h2>Curves</h2>", charts(run_panels(history))]
    if history.epochs:
        parts += ["<h2>Epochs</h2>", _epoch_table(history)]
    parts += ["<h2>Recipe</h2>", _recipe(history)]
    if history.start.environment:
        rows = [(what, show_value(value)) for what, value in history.start.environment.items()]
        parts += ["<h2>Hardware and versions</h2>"]
        parts += [table("Hardware and versions", ("what", "value"), rows)]
    if len(history.starts) > 1:
        parts += ["<h2>Starts</h2>", _start_table(history)]
    return page(f"{history.name}: training report", "\n".join(parts))


def charts(panels: list[Panel]) -> str:
    """The charts in a grid; constant metrics are listed in one line of text instead."""
    constant = [f"{p.title} {p.constant:g}" for p in panels if p.constant is not None]
    drawn = [draw(panel) for panel in panels if panel.constant is None]
    text = f'<p class="weak">Constant: {escape(", ".join(constant))}.</p>' if constant else ""
    if not any(drawn):
        return text or '<p class="weak">Nothing was reported yet.</p>'
    return f'<div class="charts">\n{"".join(drawn)}\n</div>{text}'


def show_duration(seconds: float) -> str:
    """A duration in its two largest units, such as ``5 h 12 min`` or ``3 min 05 s``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def show_time(seconds: float) -> str:
    """A time since 1970 as a date with minutes, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def best_epoch(history: History) -> tuple[float, float] | None:
    """The best top-1 accuracy in percent, and the epochs trained until then; None: no accuracy."""
    values = [(sample.metrics.get("val.top1"), sample.epochs) for sample in history.epochs]
    found = [(top1, epochs) for top1, epochs in values if top1 is not None]
    return max(found, key=lambda pair: pair[0]) if found else None


def data_wait(history: History) -> float | None:
    """The percentage of training time in which the devices waited for data; None: unknown."""
    names = ("train.data_time", "train.compute_time")
    wait, compute = (history.summary.get(name, math.nan) for name in names)
    return 100 * wait / (wait + compute) if wait + compute > 0 else None


def _headline(history: History) -> str:
    options = history.start.options
    done = history.epochs[-1].epochs if history.epochs else 0
    state = f"{done:g} of {options.get('epochs', '?')} epochs"
    facts = [str(options.get("arch", "")), state + ("" if history.ended else " so far")]
    if "global_batch" in history.plan:
        plan = history.plan
        facts.append(f"{plan['global_batch']} images per step on {plan['num_devices']} device(s)")
    facts.append(f"started {show_time(history.starts[0].time)}")
    return f'<p class="weak">{escape(" · ".join(filter(None, facts)))}</p>'


def _results(history: History) -> Iterator[tuple[str, str, str]]:
    """The tiles at the top: name, value, remark."""
    if best := best_epoch(history):
        yield "best top-1", f"{best[0]:.2f} %", f"epoch {best[1]:g}"
    last = history.epochs[-1].metrics if history.epochs else {}
    names = [n for n in in_order(last) if n in ("train.loss", "val.loss") or ".top" in n]
    for label, value in metric_rows({n: v for n in names if (v := last[n]) is not None}):
        yield label, value, "last epoch"
    summary = history.summary
    for label, value in metric_rows(summary, ["train.total_ips"]):
        yield label, value, "mean of the epochs"
    if (share := data_wait(history)) is not None:
        yield "waiting for data", f"{share:.1f} %", "share of the time"
    for label, value in metric_rows(summary, ["train.skipped_steps"]):
        yield label, value, "steps without finite gradients"
    starts = len(history.starts)
    if history.seconds or starts > 1:
        yield "time", show_duration(history.seconds), f"{starts} starts" if starts > 1 else ""


def _epoch_table(history: History) -> str:
    names = dict.fromkeys(name for sample in history.epochs for name in sample.metrics)
    metrics = [metric for name in in_order(names) if (metric := find_metric(name)).panel]
    rows = []
    for sample in history.epochs:
        values = [(metric, sample.metrics.get(metric.name)) for metric in metrics]
        cells = ["–" if v is None else m.shown.format(m.factor * v) for m, v in values]
        rows.append([f"{sample.epochs:g}", *cells])
    header = ["epoch", *(metric.label for metric in metrics)]
    return table("Metrics of each epoch", header, rows, numbers=True)


def _recipe(history: History) -> str:
    options = [(name, show_value(value)) for name, value in history.start.options.items()]
    plan = [(name, show_value(value)) for name, value in history.plan.items()]
    parts = [_deviations(history)]
    if history.start.command:
        parts.append(f"<p>Command: <code>{escape(history.start.command)}</code></p>")
    for title, rows in {"What the options led to": plan, "Every option": options}.items():
        if rows:
            body = table(title, ("name", "value"), rows)
            parts.append(f"<details><summary>{title}</summary>{body}</details>")
    return "\n".join(parts)


def _deviations(history: History) -> str:
    """What differs from the recipe, as a table or a sentence."""
    start = history.start
    if start.deviations is None:
        return '<p class="weak">The report does not tell which recipe was used.</p>'
    name = f"<code>{escape(start.recipe)}</code>" if start.recipe else "the default options"
    if not start.deviations:
        return f"<p>Trained as in {name}: no option that affects the result differs.</p>"
    rows = [
        (option, show_value(values["recipe"]), show_value(values["run"]))
        for option, values in start.deviations.items()
    ]
    body = table("Deviations from the recipe", ("option", "recipe", "this run"), rows)
    return f"<p>Trained as in {name}, except for:</p>{body}"


def _start_table(history: History) -> str:
    rows = []
    for before, start in pairwise([history.starts[0], *history.starts]):
        changed = find_differences([before.options, start.options])
        text = "; ".join(f"{k}: {show_value(a)} → {show_value(b)}" for k, (a, b) in changed.items())
        duration = show_duration(start.last_time - start.time)
        rows.append((show_time(start.time), duration, text or "none"))
    return table("Starts", ("start", "time", "options that changed"), rows)

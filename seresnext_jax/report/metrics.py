"""The table of metrics: the name, unit and format of each, in the reports and for people.

The DLLogger file's metadata, the run's summary, the console's lines and tables, the plot and the
table in docs/report.md come from here. A metric that a training step returns is reported if it has
a row.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Literal

OverRun = Literal["mean", "largest", "smallest", "last", "sum"]
_OVER_RUN: dict[OverRun, Callable[[Sequence[float]], float]] = {
    "mean": fmean,
    "largest": max,
    "smallest": min,
    "last": lambda values: values[-1],
    "sum": sum,
}
"""How to compute the value of a run from the values of its epochs."""


@dataclass(frozen=True)
class Metric:
    """One row of the table; ``{n}`` in the name, label and panel stands for a number."""

    name: str
    """The name without its prefix: ``loss`` for ``train.loss`` and ``val.loss``."""
    label: str
    """The name for people."""
    shown: str = "{:.5g}"
    """Format of a value for people, with its unit."""
    unit: str | None = None
    form: str | None = None
    """DLLogger's format of the value in `unit`; None: the file describes the metric by ``{}``, as
    the original does for ``train.lr``, or not at all if it has no row."""
    splits: str = ""
    """The prefixes of its names, such as ``train val``, for docs/report.md."""
    meaning: str = ""
    """One line for docs/report.md."""
    factor: float = 1.0
    """Converts from `unit` to the unit of `shown`."""
    verbose: bool = False
    """Written in a second record of the same step, as in the original."""
    panel: str = ""
    """Title of the chart that shows it, with the unit of `shown`; empty: it has no chart.
    ``{split}`` stands for train or val, which then have a chart each."""
    log2: bool = False
    """Its chart has a logarithmic axis."""
    from_zero: bool = False
    """The axis of its chart begins at zero, so that noise is not magnified."""
    over_run: OverRun = "mean"
    """How the run's summary combines the values of the epochs."""


# fmt: off
METRICS = (
    Metric("loss", "loss", "{:.4f}", None, ":.5f", "train val",
           "`train`: mean over the images trained on (the original's is divided by the "
           "accumulation); `val`: the original's validation loss (label-smoothed where training "
           "uses neither mixup nor CutMix)", panel="loss", over_run="smallest"),
    Metric("ce", "cross-entropy", "{:.4f}", None, ":.5f", "val", "plain cross-entropy",
           over_run="smallest"),
    Metric("top{n}", "top-{n}", "{:.2f} %", "%", ":.2f", "val",
           "accuracy: n is 1 and that of `--topk`, at most the number of classes",
           panel="top-{n} (%)", over_run="largest"),
    Metric("lr", "lr", "{:.4g}", None, None, "train",
           "learning rate of the last step", panel="learning rate", over_run="last"),
    Metric("grad_scale", "loss scale", "{:g}", None, ":.5f", "train",
           "loss scale of the last step", panel="loss scale", log2=True, over_run="last"),
    Metric("skipped_steps", "skipped", "{:.0f}", None, ":.0f", "train",
           "steps since the run began whose loss or gradients were not finite",
           panel="skipped steps", over_run="last"),
    Metric("bad_images", "left out", "{:.0f}", None, ":.0f", "train",
           "images of the epoch that could not be decoded, over all processes", over_run="sum"),
    Metric("count", "images", "{:.0f}", None, ":.0f", "val", "images evaluated",
           over_run="last"),
    Metric("images", "images to evaluate", "{:.0f}", None, ":.0f", "val",
           "images of the evaluation: those evaluated and those that could not be decoded",
           over_run="last"),
    Metric("total_ips", "throughput", "{:.1f} img/s", "images/s", ":.2f", "train val",
           "images over wall time", panel="{split} throughput (img/s)", from_zero=True),
    Metric("compute_ips", "throughput without data wait", "{:.1f} img/s", "images/s", ":.2f",
           "train val", "the same without the wait for data"),
    Metric("data_time", "data wait", "{:.2f} ms", "s", ":.5f", "train val",
           "per step or batch: time in which the device had no data", 1000, verbose=True,
           panel="{split} data wait (ms)", from_zero=True),
    Metric("compute_time", "compute time", "{:.2f} ms", "s", ":.5f", "train",
           "per step: the rest of the time", 1000, verbose=True),
    Metric("compute_latency", "latency", "{:.2f} ms", "s", ":.5f", "val",
           "from a batch to its result: mean", 1000),
    Metric("compute_latency_at{n}", "latency, {n} %", "{:.2f} ms", "s", ":.5f", "val",
           "the same: percentiles 50, 90, 95, 99 and 100 (the nearest value)", 1000, verbose=True),
)
# fmt: on

SPLITS = {
    "train": "train {}",
    "val": "val {}",
    "val_ema": "{} of the moving average",
    "best": "best {}",
    "last.train": "train {} of the last epoch",
    "last.val": "val {} of the last epoch",
    "last.val_ema": "{} of the moving average after the last epoch",
}
"""The prefix of a metric's name, and how it changes the label."""


@cache
def find_metric(name: str) -> Metric:
    """The row for a name such as ``val.top5`` or ``top5``, with name, label and panel filled in.

    A metric without a row gets a plain one, without metadata in the DLLogger file.
    """
    split, _, last = name.rpartition(".")
    for metric in METRICS:
        match = re.fullmatch(metric.name.replace("{n}", r"(\d+)"), last)
        if match:
            break
    else:
        metric, match = Metric(last, last), None
    number = match[1] if match and match.groups() else ""
    label, panel = (text.replace("{n}", number) for text in (metric.label, metric.panel))
    panel = panel.replace("{split}", split.removesuffix("_ema"))
    return replace(metric, name=name, label=SPLITS.get(split, "{}").format(label), panel=panel)


def in_order(names: Iterable[str]) -> list[str]:
    """The names in the order of the table; those of one metric by number, then by split."""
    rows = {metric.meaning: row for row, metric in enumerate(METRICS)}
    splits = list(SPLITS)

    def place(name: str) -> tuple[int, int, int]:
        split, _, last = name.rpartition(".")
        row = rows.get(find_metric(name).meaning, len(rows))
        number = re.search(r"\d+$", last)
        at = splits.index(split) if split in splits else len(splits)
        return row, int(number[0]) if number else 0, at

    return sorted(names, key=place)


def summarize(epochs: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """The metrics of a run from those of its epochs, by `Metric.over_run`.

    Args:
      epochs: the metrics of each epoch; None for a value that was not finite, which is ignored.

    Returns:
      The metrics by name; NaN for one without a finite value.
    """
    names = dict.fromkeys(name for epoch in epochs for name in epoch)
    run = {}
    for name in names:
        found = [value for epoch in epochs if (value := epoch.get(name)) is not None]
        run[name] = _OVER_RUN[find_metric(name).over_run](found) if found else math.nan
    return run


def metric_rows(
    metrics: Mapping[str, float], names: Iterable[str] | None = None
) -> list[tuple[str, str]]:
    """Labels and formatted values of all `metrics`, or of those in `names`."""
    chosen = metrics if names is None else dict.fromkeys(names)
    found = [(find_metric(name), metrics[name]) for name in chosen if name in metrics]
    return [(metric.label, metric.shown.format(metric.factor * v)) for metric, v in found]

"""The table of metrics: what each is called, its unit, and how the reports and people see it.

The DLLogger file's metadata, the console's lines and tables, the plot and the table in
docs/report.md come from here. A number that a training step returns is reported as soon as it has
a row.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache


@dataclass(frozen=True)
class Metric:
    """One row; ``{n}`` in a name and its label is a number."""

    name: str
    """The last part of the name: ``loss`` of ``train.loss`` and ``val.loss``."""
    label: str
    """The name for people."""
    shown: str = "{:.5g}"
    """How people see a value, with its unit."""
    unit: str | None = None
    form: str | None = None
    """DLLogger's format of the value in `unit`; None: its file does not describe the metric."""
    splits: str = ""
    """The first parts of its names, for docs/report.md."""
    meaning: str = ""
    """One line for docs/report.md."""
    factor: float = 1.0
    """From `unit` to the unit of `shown`."""
    verbose: bool = False
    """The original keeps it off the console, in a second record of the same step."""
    panel: str = ""
    """Title of the panel of the plot that draws it; empty: none does."""


# fmt: off
METRICS = (
    Metric("loss", "loss", "{:.4f}", None, ":.5f", "train val",
           "`train`: mean over the images trained on (the original's is divided by the "
           "accumulation); `val`: the original's validation loss (label-smoothed where training "
           "does not use mixup)", panel="loss"),
    Metric("ce", "cross-entropy", "{:.4f}", None, ":.5f", "val", "plain cross-entropy"),
    Metric("top{n}", "top-{n}", "{:.2f} %", "%", ":.2f", "val",
           "accuracy: n is 1 and that of `--topk`; `best.top1` in the summary is the best epoch's",
           panel="accuracy (%)"),
    Metric("lr", "lr", "{:.4g}", None, None, "train",
           "learning rate of the last step", panel="learning rate"),
    Metric("grad_scale", "loss scale", "{:g}", None, ":.5f", "train",
           "loss scale of the last step"),
    Metric("skipped_steps", "skipped", "{:.0f}", None, ":.0f", "train",
           "steps since the run began whose loss or gradients were not finite"),
    Metric("bad_images", "left out", "{:.0f}", None, ":.0f", "train",
           "images of the epoch that could not be decoded, over all processes"),
    Metric("count", "images", "{:.0f}", None, ":.0f", "val", "images evaluated"),
    Metric("images", "images to evaluate", "{:.0f}", None, ":.0f", "val",
           "images of the evaluation: those evaluated and those that could not be decoded"),
    Metric("total_ips", "throughput", "{:.1f} img/s", "images/s", ":.2f", "train val",
           "images over wall time"),
    Metric("compute_ips", "throughput without data wait", "{:.1f} img/s", "images/s", ":.2f",
           "train val", "the same without the wait for data"),
    Metric("data_time", "data wait", "{:.2f} ms", "s", ":.5f", "train val",
           "per step or batch: time in which the device had no data", 1000, verbose=True),
    Metric("compute_time", "compute time", "{:.2f} ms", "s", ":.5f", "train",
           "per step: the rest of the time", 1000, verbose=True),
    Metric("compute_latency", "latency", "{:.2f} ms", "s", ":.5f", "val",
           "from a batch to its result: mean", 1000),
    Metric("compute_latency_at{n}", "latency, {n} %", "{:.2f} ms", "s", ":.5f", "val",
           "the same: percentiles 50, 90, 95, 99 and 100 (the nearest value)", 1000, verbose=True),
)
# fmt: on

SPLITS = {"train": "train {}", "val": "val {}", "val_ema": "{} of the average", "best": "best {}"}
"""First part of a metric's name, and the label of a metric that has it."""


@cache
def find_metric(name: str) -> Metric:
    """The row of a name such as ``val.top5`` or ``top5``, with that name, label and number.

    A metric without a row gets a plain one, which the DLLogger file does not describe.
    """
    split, _, last = name.rpartition(".")
    for metric in METRICS:
        match = re.fullmatch(metric.name.replace("{n}", r"(\d+)"), last)
        if match:
            break
    else:
        metric, match = Metric(last, last), None
    label = metric.label.replace("{n}", match[1]) if match and match.groups() else metric.label
    return replace(metric, name=name, label=SPLITS.get(split, "{}").format(label))


def metric_rows(
    metrics: Mapping[str, float], names: Iterable[str] | None = None
) -> list[tuple[str, str]]:
    """Label and value, for people: of all `metrics`, or of those of `names` that there are."""
    chosen = metrics if names is None else dict.fromkeys(names)
    found = [(find_metric(name), metrics[name]) for name in chosen if name in metrics]
    return [(metric.label, metric.shown.format(metric.factor * v)) for metric, v in found]

"""The plot of a run, drawn from its report."""

from pathlib import Path
from typing import Any

from seresnext_jax.report.metrics import METRICS, find_metric
from seresnext_jax.report.sinks import read_report, writing

_COLOURS = {"train": "C0", "val": "C1", "val_ema": "C2"}
"""The colour of a curve, by the first part of the metric's name."""


def plot_report(report: Path, png: Path) -> None:
    """Draw the metrics of each panel over the epochs, with a gap where a value is missing.

    Args:
      report: a run's ``report.jsonl``.
      png: the image file to write.

    Raises:
      UserError: the report is damaged, or the image file can't be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [record for record in read_report(report) if record["event"] == "epoch"]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    panels = list(dict.fromkeys(metric.panel for metric in METRICS if metric.panel))
    for axis, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in _names(epochs, panel):
            split, metric = name.split(".")
            axis.plot(
                [record["epoch"] + 1 for record in epochs],
                [_number(record["metrics"].get(name)) for record in epochs],
                color=_COLOURS[split],
                linestyle="--" if metric.startswith("top") and metric != "top1" else "-",
                marker="." if len(epochs) <= 40 else "",
                label=find_metric(name).label,
            )
        axis.set_title(panel)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(frameon=False)
    with writing(png):
        figure.savefig(png, dpi=120)


def _names(epochs: list[dict[str, Any]], panel: str) -> list[str]:
    """The metrics of a panel in the order train, val, val_ema."""
    names = {name for record in epochs for name in record["metrics"]}
    drawn = sorted(name for name in names if find_metric(name).panel == panel)
    return [name for split in _COLOURS for name in drawn if name.split(".")[0] == split]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value

"""A picture of a run, drawn from its report."""

from pathlib import Path
from typing import Any

from seresnext_jax.report.dllogger import read_report
from seresnext_jax.report.files import writing

_PANELS = {"loss": ".loss", "accuracy (%)": ".top", "learning rate": ".lr"}
"""Title of a panel: what the names of its metrics hold."""
_SPLITS = {
    "train": ("training", "C0"),
    "val": ("validation", "C1"),
    "val_ema": ("moving average", "C2"),
}
"""First part of a metric's name: its label and colour."""


def plot_report(report: Path, png: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs, with a gap where a value is missing.

    Args:
      report: a run's ``report.jsonl``.
      png: the picture to write.

    Raises:
      UserError: the report is damaged, or the picture can't be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [record for record in read_report(report) if record["event"] == "epoch"]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    for axis, (title, part) in zip(figure.subplots(1, 3), _PANELS.items(), strict=True):
        for name in _names(epochs, part):
            split, metric = name.split(".")
            label, colour = _SPLITS[split]
            top = metric.startswith("top")
            axis.plot(
                [record["epoch"] + 1 for record in epochs],
                [_number(record["metrics"].get(name)) for record in epochs],
                color=colour,
                linestyle="--" if top and metric != "top1" else "-",
                marker="." if len(epochs) <= 40 else "",
                label=f"{label} {metric.replace('top', 'top-')}" if top else label,
            )
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend(frameon=False)
    with writing(png):
        figure.savefig(png, dpi=120)


def _names(epochs: list[dict[str, Any]], part: str) -> list[str]:
    """The metrics of a panel: training, validation, average."""
    names = {name for record in epochs for name in record["metrics"] if part in name}
    return [name for split in _SPLITS for name in sorted(names) if name.split(".")[0] == split]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value

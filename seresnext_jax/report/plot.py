"""A picture of a run, drawn from its report."""

import json
from pathlib import Path
from typing import Any


def plot_report(report: Path, png: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs.

    Args:
      report: a run's ``report.jsonl``.
      png: the picture to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = report.read_text(encoding="utf-8").splitlines()
    epochs = [r for r in map(json.loads, lines) if r["event"] == "epoch"]
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    panels = (
        ("loss", ("train.loss", "val.loss", "val_ema.loss")),
        ("accuracy (%)", ("val.top", "val_ema.top")),
        ("learning rate", ("train.lr",)),
    )
    for axis, (title, prefixes) in zip(axes, panels, strict=True):
        for name in _names(epochs, prefixes):
            points = [(r["epoch"] + 1, r["metrics"].get(name)) for r in epochs]
            points = [(x, y) for x, y in points if y is not None]
            axis.plot(*zip(*points, strict=True), marker=".", label=name)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(frameon=False)
    figure.savefig(png, dpi=120)
    pyplot.close(figure)


def _names(epochs: list[dict[str, Any]], prefixes: tuple[str, ...]) -> list[str]:
    names = {name for r in epochs for name, value in r["metrics"].items() if value is not None}
    return sorted(name for name in names if name.startswith(prefixes))

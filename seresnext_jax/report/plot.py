"""The plots of a run as PNG files: one with every chart, and the three that the original shows."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seresnext_jax.output import write_whole
from seresnext_jax.report.history import read_history
from seresnext_jax.report.names import PLOT_NAME
from seresnext_jax.report.panels import Panel, run_panels
from seresnext_jax.report.sinks import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = "-", "--", ":"
_COLUMNS = 3


def plot_report(report: Path, folder: Path) -> None:
    """Write ``report.png``, ``loss_plot.png``, ``top1_plot.png``, and ``top5_plot.png`` for top-5.

    A line has a gap where a value is missing. Constant values have no chart in ``report.png``.
    Without an evaluation there are no plots of the accuracy.

    Args:
      report: a run's ``report.jsonl``.
      folder: where the images are written.

    Raises:
      UserError: the report is damaged, or an image can't be written.
    """
    panels = run_panels(read_history(report))
    changing = [panel for panel in panels if panel.constant is None]
    _save(draw_panels(changing, columns=_COLUMNS), folder / PLOT_NAME)
    for panel in panels:
        if panel.title == "loss" or panel.title.startswith("top-"):
            name = panel.title.partition(" ")[0].replace("-", "")
            _save(draw_panels([panel]), folder / f"{name}_plot.png")


def draw_panels(panels: Sequence[Panel], *, columns: int = 1) -> "Figure":
    """A figure with the panels row by row, in at most `columns` columns."""
    from matplotlib.figure import Figure

    columns = max(1, min(columns, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    size = (4.4 * columns, 3.4 * rows) if len(panels) > 1 else (6.4, 4.4)
    figure = Figure(figsize=size, layout="constrained")
    for number, panel in enumerate(panels, start=1):
        _draw(panel, figure.add_subplot(rows, columns, number))
    return figure


def _save(figure: "Figure", png: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    with writing(png):
        write_whole(png, picture.getvalue())


def _draw(panel: Panel, axis: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    for line in panel.lines:
        values = [math.nan if y is None else y for _, y in line.points]
        axis.plot(
            [x for x, _ in line.points],
            values,
            color=f"C{line.style}",
            linestyle=_DASHES[line.style % len(_DASHES)],
            marker="." if len(values) <= 40 else "",
            label=line.label,
        )
    if panel.log2:
        axis.set_yscale("log", base=2)
    if panel.from_zero:
        axis.update_datalim([(0, 0)], updatex=False)
        axis.autoscale_view()
    axis.set_title(panel.title)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    if len(axis.lines) > 1:
        axis.legend(frameon=False)

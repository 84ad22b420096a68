"""The charts of the pages and the plots as data: panels with their lines."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from seresnext_jax.report.history import History
from seresnext_jax.report.metrics import SPLITS, find_metric, in_order

Point = tuple[float, float | None]
"""Epochs trained, and a value in the unit of the panel; None is a gap in the line."""


@dataclass(frozen=True)
class Line:
    """One curve."""

    label: str
    style: int
    """Index of its colour and dash pattern."""
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """One chart; its x axis is the number of epochs trained."""

    title: str
    lines: tuple[Line, ...]
    log2: bool = False
    """The y axis is logarithmic."""
    from_zero: bool = False
    """The y axis begins at zero."""

    @property
    def constant(self) -> float | None:
        """The common value of all points; None if they differ or there are fewer than two."""
        values = [value for line in self.lines for _, value in line.points]
        return values[0] if len(values) > 1 and len(set(values)) == 1 else None


def run_panels(history: History) -> list[Panel]:
    """One panel for each metric that has a chart, with a line for each split."""
    panels: dict[str, list[str]] = {}
    for name in in_order(history.names):
        panels.setdefault(find_metric(name).panel, []).append(name)
    panels.pop("", None)
    return [
        Panel(
            title,
            tuple(
                Line(find_metric(name).label, _style(name), _curve(history, name)) for name in names
            ),
            log2=find_metric(names[0]).log2,
            from_zero=find_metric(names[0]).from_zero,
        )
        for title, names in panels.items()
    ]


def compared_panels(runs: Sequence[tuple[str, History]]) -> list[Panel]:
    """One panel for each charted metric that several runs have, with one line per run."""
    counts = Counter(name for _, history in runs for name in history.names)
    panels = []
    for metric in map(find_metric, in_order(counts)):
        if metric.panel and counts[metric.name] > 1:
            lines = [
                Line(label, style, _curve(history, metric.name))
                for style, (label, history) in enumerate(runs)
                if metric.name in history.names
            ]
            unit = metric.panel.partition(" (")[2]
            title = metric.label + (f" ({unit}" if unit else "")
            panels.append(Panel(title, tuple(lines), metric.log2, metric.from_zero))
    return panels


def _curve(history: History, name: str) -> tuple[Point, ...]:
    """The means over a few steps or those over epochs, whichever has more points."""
    factor = find_metric(name).factor
    found = (
        [(s.epochs, s.metrics[name]) for s in samples if name in s.metrics]
        for samples in (history.steps, history.epochs)
    )
    return tuple((x, None if y is None else factor * y) for x, y in max(found, key=len))


def _style(name: str) -> int:
    """The index of the name's split in `SPLITS`; unknown splits share the next index."""
    return [*SPLITS, name.rpartition(".")[0]].index(name.rpartition(".")[0])

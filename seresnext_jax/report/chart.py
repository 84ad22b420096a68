"""A line chart as SVG: no script, readable in any browser, coloured by the page's style sheet."""

import math
from collections.abc import Sequence
from html import escape

from seresnext_jax.report.panels import Line, Panel, Point

STYLES = 8
"""Number of line styles in page.css; further lines start again with the first."""

_WIDTH, _HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 10, 34
_MOST_POINTS = 300
"""Points of a line; a line with more is reduced to the lowest and highest of each interval."""
_MOST_DOTS = 30
"""Lines with more points have no dots."""


def draw(panel: Panel) -> str:
    """The chart as a ``figure`` with a text for screen readers; "" if there are no values."""
    lines = [line for line in panel.lines if any(y is not None for _, y in line.points)]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if y is not None]
    low, high = min(xs), max(xs)
    x_axis = Axis(min(low, high - 1), high, pixels=(_LEFT, _WIDTH - _RIGHT), whole=True)
    ys += [0.0] * panel.from_zero
    y_axis = Axis(min(ys), max(ys), pixels=(_HEIGHT - _BOTTOM, _TOP), log2=panel.log2)
    parts = [_grid(x_axis, y_axis), *(_curve(line, x_axis, y_axis) for line in lines)]
    described = "; ".join(_describe(line) for line in lines)
    return (
        f"<figure><figcaption>{escape(panel.title)}{_legend(lines)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(f"{panel.title} by epoch. {described}")}">{"".join(parts)}</svg>'
        "</figure>"
    )


class Axis:
    """Converts values to pixels, and chooses the tick labels of the axis."""

    def __init__(
        self,
        low: float,
        high: float,
        *,
        pixels: tuple[int, int],
        log2: bool = False,
        whole: bool = False,
    ) -> None:
        """Span at least the values from `low` to `high`; `whole`: label integers only."""
        from matplotlib.ticker import MaxNLocator

        self._log2 = log2 and low > 0
        if self._log2:
            low, high = math.log2(low), math.log2(high)
        elif not whole and 0 < low < high / 2:
            low = 0
        if low == high:
            low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
        intervals, integer = 6 if whole else 5, whole or self._log2
        locator = MaxNLocator(intervals, steps=(1, 2, 5, 10), integer=integer, min_n_ticks=1)
        ticks = list(locator.tick_values(low, high))
        if whole:
            ticks = [tick for tick in ticks if low <= tick <= high]
        else:
            low, high = ticks[0], ticks[-1]
        self.ticks = [2.0**tick for tick in ticks] if self._log2 else ticks
        self._low, self._high, self._pixels = low, high, pixels

    def place(self, value: float) -> float:
        """The pixel of a value."""
        if self._log2:
            value = math.log2(value)
        start, end = self._pixels
        return start + (end - start) * (value - self._low) / (self._high - self._low)


def _short(value: float) -> str:
    """A value in the six characters that fit beside the axis: ``32768``, ``1.05M``."""
    return f"{value / 1e6:.3g}M" if abs(value) >= 1e6 else f"{value:.6g}"


def _grid(x_axis: Axis, y_axis: Axis) -> str:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="y">{_short(tick)}</text>')
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {_HEIGHT - _BOTTOM}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}">{tick:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return "".join(parts) + f'<text x="{middle}" y="{_HEIGHT - 3}">epoch</text>'


def _curve(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    """A line with gaps where values are missing; a short one has dots with tooltips."""
    points = thin(line.points)
    path, pen_down = [], False
    for x, y in points:
        if y is not None:
            path.append(f"{'L' if pen_down else 'M'}{x_axis.place(x):.1f} {y_axis.place(y):.1f}")
        pen_down = y is not None
    style = f"s{line.style % STYLES}"
    parts = [f'<path class="line {style}" d="{"".join(path)}"/>']
    if len(points) <= _MOST_DOTS:
        for x, y in points:
            if y is not None:
                place = f'cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}"'
                title = f"<title>{escape(f'{line.label}, epoch {x:.4g}: {y:.5g}')}</title>"
                parts.append(f'<circle class="{style}" {place} r="2.5">{title}</circle>')
    return "".join(parts)


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> Sequence[Point]:
    """About `most` of the points: the lowest and highest of each interval, so spikes stay."""
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for at in range(0, len(points), size):
        stretch = points[at : at + size]
        valued = [point for point in stretch if point[1] is not None] or stretch[:1]
        lowest = min(valued, key=lambda point: point[1] or 0)
        highest = max(valued, key=lambda point: point[1] or 0)
        kept += sorted({lowest, highest}, key=lambda point: point[0])
    return kept


def _legend(lines: Sequence[Line]) -> str:
    """A sample of each line beside its name."""
    items = "".join(
        f'<li><svg viewBox="0 0 28 8" aria-hidden="true"><path class="line s{line.style % STYLES}" '
        f'd="M0 4H28"/></svg>{escape(line.label)}</li>'
        for line in lines
    )
    return f'<ul class="legend">{items}</ul>'


def _describe(line: Line) -> str:
    """First, last, lowest and highest value of a line, in words."""
    points = [(x, y) for x, y in line.points if y is not None]
    first, last = points[0], points[-1]
    lowest, highest = (choose(points, key=lambda point: point[1]) for choose in (min, max))
    parts = {"from": first, "to": last, "lowest": lowest, "highest": highest}
    values = ", ".join(f"{word} {y:.5g} at epoch {x:.4g}" for word, (x, y) in parts.items())
    return f"{line.label}: {values}"

"""Line charts as inline SVG whose colours follow the page, in light and in dark."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Scale = Literal["linear", "log", "error"]

# Stand-ins that are exchanged for the page's CSS variables once the chart is drawn.
_INK, _GRID = "#0000b1", "#0000b2"
_SERIES = ("#0000a1", "#0000a2", "#0000a3")
_VARIABLES = {
    _INK: "var(--muted)",
    _GRID: "var(--line)",
    **{colour: f"var(--series-{n})" for n, colour in enumerate(_SERIES, 1)},
}
_MOST_POINTS = 400
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prong",  # equal data, equal bytes
    "font.size": 10.5,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: What the legend calls it.
        points: Pairs (x, y); a y that is not finite is left out.
        dots: Whether the points are marked, as suits few of them.
    """

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    scale: Scale = "linear",
    size: tuple[float, float] = (4.4, 2.6),
    along: str = "step",
    counted: bool = True,
) -> str:
    """Return a chart over steps, or something else, as an SVG element for an HTML page.

    Args:
        title: Said to those who do not see the chart; the page shows its own.
        series: At most three lines.
        scale: Of the y axis; `error` is logarithmic with a zero.
        size: Width and height, inches at 72 points.
        along: What the x axis shows.
        counted: Whether that is counted, in whole numbers.
    """
    drawn = [s for s in (_thin(s, scale) for s in series) if s.points]
    # The style must outlive the drawing: SVG settings are read when the figure is written.
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for line, colour in zip(drawn, _SERIES, strict=False):
            x, y = zip(*line.points, strict=True)
            mark = "o" if line.dots or len(x) == 1 else None
            axes.plot(x, y, color=colour, linewidth=1.6, marker=mark, markersize=3.5)
        _dress(axes, drawn, scale)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=counted))
        axes.set_xlabel(along)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), _spoken(title, drawn))


def scatter_chart(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    """Return predicted over actual values as an SVG element for an HTML page.

    Args:
        name: Of the value.
        pairs: Actual and predicted value of each example; evenly thinned where there are many.
    """
    step = -(-len(pairs) // _MOST_POINTS) or 1
    x, y = zip(*list(pairs)[::step], strict=True)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        ends = (min(*x, *y), max(*x, *y)) if len(x) else (0.0, 1.0)
        axes.plot(ends, ends, color=_GRID, linewidth=1)
        axes.plot(x, y, "o", color=_SERIES[0], markersize=3, alpha=0.5, markeredgewidth=0)
        axes.set_xlabel("actual")
        axes.set_ylabel("predicted")
        axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), f"{name}: predicted over actual values, {len(pairs)} examples")


def _thin(series: Series, scale: Scale) -> Series:
    """Return a series that can be drawn: finite, positive on a log axis, not too many points."""
    good = [(x, y) for x, y in series.points if math.isfinite(y) and (scale != "log" or y > 0)]
    width = -(-len(good) // _MOST_POINTS) or 1
    parts = [good[at : at + width] for at in range(0, len(good), width)]
    mean = [(p[-1][0], sum(y for _, y in p) / len(p)) for p in parts]
    return Series(series.name, mean, series.dots)


def _dress(axes: Any, drawn: Sequence[Series], scale: Scale) -> None:
    if scale == "log":
        axes.set_yscale("log")
        _whole_decades(axes, [y for s in drawn for _, y in s.points])
    elif scale == "error":
        axes.set_yscale("symlog", linthresh=0.1, linscale=0.4)
        axes.set_ylim(bottom=0)
        axes.set_yticks([0, 0.1, 1, 10, 100])
        axes.set_ylim(top=max([1, *(1.3 * y for s in drawn for _, y in s.points)]))
    if scale != "linear":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.grid(visible=True, axis="y", color=_GRID, linewidth=0.8)
    axes.minorticks_off()
    axes.spines[["top", "right", "left"]].set_visible(False)
    if len(drawn) > 1:
        axes.legend(
            axes.get_lines(), [s.name for s in drawn], frameon=False, labelcolor=_INK, loc="best"
        )


def _whole_decades(axes: Any, values: Sequence[float]) -> None:
    """Let a log axis of few decades end on powers of ten, or it might show no tick at all."""
    if values:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        if high - low <= 2:
            axes.set_ylim(10.0**low * 0.9, 10.0 ** max(high, low + 1) * 1.1)


def _spoken(title: str, drawn: Sequence[Series]) -> str:
    said = [f"{s.name} from {s.points[0][1]:.3g} to {s.points[-1][1]:.3g}" for s in drawn]
    return f"{title}: {'; '.join(said) or 'no data'}"


def _inline(svg: str, label: str) -> str:
    """Return the SVG element alone: scaled by the page, in its colours and type."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # the same in every chart of the page
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    view = re.search(r'viewBox="[^"]*"', svg)
    spoken = f'<svg class="chart" role="img" aria-label="{html.escape(label)}"'
    return re.sub(r"<svg[^>]*>", f"{spoken} {view[0] if view else ''}>", svg, count=1)

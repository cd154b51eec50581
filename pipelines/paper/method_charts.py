"""Charts of many methods as inline SVG whose colours follow the page."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pipelines.paper.sheet import Chart, Line
from pipelines.pipeline.charts import GRID, INK, STYLE, inline

# Stand-ins that are exchanged for the page's CSS variables once the chart is drawn.
_OURS = ("#0000c1", "#0000c2", "#0000c3")
_OTHERS = tuple(f"#0000d{n:x}" for n in range(10))
_MARK = "#0000e1"
COLOURS = {
    **{colour: f"var(--ours-{n})" for n, colour in enumerate(_OURS, 1)},
    **{colour: f"var(--other-{n})" for n, colour in enumerate(_OTHERS, 1)},
    _MARK: "var(--mark)",
}
_DASHES = ("-", "--", ":")


def draw(chart: Chart) -> str:
    """Return a chart as an SVG element for an HTML page.

    Args:
        chart: What is drawn. Points that are not finite, or not positive on a logarithmic axis, are
            left out.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for line, colour, dash in _coloured(chart.lines):
            _curve(axes, chart, line, colour, dash)
        for rule in chart.rules:
            axes.axhline(rule.value, color=_MARK, linewidth=1.2, linestyle=(0, (5, 3)))
            axes.annotate(
                rule.name, (1, rule.value), xycoords=("axes fraction", "data"), color=_MARK,
                xytext=(0, 3), textcoords="offset points", ha="right", fontsize=9,
            )  # fmt: skip
        _dress(axes, chart)
        drawn, names = axes.get_legend_handles_labels()
        if drawn:
            figure.legend(
                drawn, names, loc="outside right upper", frameon=False, labelcolor=INK, fontsize=9
            )
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return inline(text.getvalue(), _spoken(chart), COLOURS)


def _coloured(lines: tuple[Line, ...]) -> list[tuple[Line, str, str]]:
    """Return each line with a colour of its own and a dash: few colours are told apart."""
    found, counts = [], {True: 0, False: 0}
    for line in lines:
        palette = _OURS if line.ours else _OTHERS
        count = counts[line.ours]
        counts[line.ours] += 1
        dash = "-" if line.ours else _DASHES[count % len(_DASHES)]
        found.append((line, palette[count % len(palette)], dash))
    return found


def _curve(axes: Any, chart: Chart, line: Line, colour: str, dash: str) -> None:
    good = [
        point
        for point in line.points
        if all(map(math.isfinite, point))
        and (chart.y_axis != "log" or min(point[1:]) > 0)
        and (chart.x_axis != "log" or point[0] > 0)
    ]
    if not good:
        return
    x, middle, low, high = zip(*good, strict=True)
    mark = "o" if len(good) < 3 else None
    width = 2.2 if line.ours else 1.3
    axes.plot(x, middle, dash, color=colour, linewidth=width, marker=mark, label=line.name)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _dress(axes: Any, chart: Chart) -> None:
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.set_xscale(chart.x_axis)
    axes.set_yscale(chart.y_axis)
    for kind, axis in ((chart.x_axis, axes.xaxis), (chart.y_axis, axes.yaxis)):
        if kind == "log":
            low, high = axis.get_view_interval()
            subs = (1.0, 2.0, 5.0) if high / max(low, 1e-300) < 100 else (1.0,)
            axis.set_major_locator(LogLocator(subs=subs))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _spoken(chart: Chart) -> str:
    said = [
        f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}"
        for line in chart.lines
        if line.points
    ]
    return f"{chart.title}: {'; '.join(said) or 'no data'}"

"""A picture of the champion and its variants: error, size and speed as bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipelines.core.files import atomic_path
from pipelines.variants.side_by_side import LIVE, VariantRow

_CHAMPION, _RELEASED, _OTHER = "#5b6472", "#2a6fbb", "#c9d3de"
Bar = tuple[float | None, str]
"""Its length, None where nothing was measured; and what is written beside it."""


def _error(row: VariantRow) -> Bar:
    return (None, "") if row.error is None else (100 * row.error, f"{row.error:.2%}")


def _size(row: VariantRow) -> Bar:
    return (None, "") if row.size is None else (row.size / 1000, f"{row.size / 1000:,.3g}")


def _p50(row: VariantRow) -> Bar:
    return _relative(row.p50_ms, row.times_p50, "ms")


def _throughput(row: VariantRow) -> Bar:
    return _relative(row.throughput, row.times_throughput, "/s")


def _relative(value: float | None, times: float | None, unit: str) -> Bar:
    """Return the bar of a time: of the champion, which has no ratio to itself, it is 1."""
    if value is None:
        return None, ""
    length = 1.0 if times is None else times
    return length, f"{value:,.3g} {unit}" + ("" if times is None else f", × {times:.2f}")


_PANELS: tuple[tuple[str, Callable[[VariantRow], Bar]], ...] = (
    ("error, %, with its 95 % interval", _error),
    ("size, kB", _size),
    ("time at batch 1 (p50), × the champion's", _p50),
    ("examples/s at batch 256, × the champion's", _throughput),
)


def draw(rows: Sequence[VariantRow], path: Path) -> None:
    """Write the picture as a PNG file.

    Args:
        rows: The champion's first.
        path: The file, replaced atomically.
    """
    shown = [row for row in rows if row.size is not None]
    with mpl.rc_context({"font.size": 9, "text.parse_math": False}):
        height = 1.3 + 0.42 * len(shown)
        figure = Figure(figsize=(13, height), layout="constrained", dpi=130)
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(_PANELS), sharey=True)
        for panel, (title, bar) in zip(axes, _PANELS, strict=True):
            _bars(panel, shown, title, bar)
        axes[0].set_yticks(range(len(shown)), [_label(row) for row in shown])
        axes[0].invert_yaxis()
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _label(row: VariantRow) -> str:
    name = f"{row.name} v{row.version}"
    return name if row.state == LIVE else f"{name}\nblocked: {', '.join(row.blocked_by[:2])}"


def _bars(
    panel: Axes, rows: Sequence[VariantRow], title: str, bar: Callable[[VariantRow], Bar]
) -> None:
    panel.set_title(title, fontsize=9)
    for place, row in enumerate(rows):
        length, told = bar(row)
        if length is None:
            panel.text(0, place, " not measured", va="center", color=_CHAMPION)
            continue
        colour = _CHAMPION if place == 0 else _RELEASED if row.state == LIVE else _OTHER
        panel.barh(place, length, color=colour, height=0.62)
        end = length
        if bar is _error and row.low is not None and row.high is not None:
            panel.plot(
                [100 * row.low, 100 * row.high], [place, place], color="black", linewidth=1.2
            )
            end = max(length, 100 * row.high)
        panel.annotate(told, (end, place), (4, 0), textcoords="offset points", va="center")
    panel.margins(x=0.5)
    panel.set_xlim(left=0)
    panel.tick_params(length=0)
    panel.spines[["top", "right"]].set_visible(False)

"""The picture of a search: the error over the trials, and against each setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from pipelines.core.files import atomic_path
from pipelines.core.paths import Layout
from pipelines.search.outcome import Searched, Tried, rank
from pipelines.search.space import SECTION
from pipelines.systems.optuna.dimensions import Choice, Range, written
from pipelines.systems.optuna.studies import Ended

_INK, _GRID, _DONE, _STOPPED, _BEST = "#333333", "#dddddd", "#2a6fbb", "#b0b0b0", "#d1495b"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prong",  # equal trials, equal bytes
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.parse_math": False,
}
_MOST_IN_A_ROW = 3


def picture_path(layout: Layout, name: str) -> Path:
    """Return where the picture of a study lies."""
    return layout.reports / f"search-{name.removeprefix('search-')}.svg"


def draw(done: Searched, out: Path) -> bool:
    """Write the picture as SVG, atomically.

    Args:
        done: The search.
        out: The file.

    Returns:
        Whether there was anything to draw: a trial with an error.
    """
    scored = [one for one in done.counted if one.error is not None]
    if not scored:
        return False
    count = 1 + len(done.space)
    columns = 2 if count == 4 else min(count, _MOST_IN_A_ROW)
    rows = -(-count // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.6), layout="constrained")
        FigureCanvasSVG(figure)
        places = figure.subplots(rows, columns, squeeze=False).ravel()
        for place in places:
            place.spines[["top", "right"]].set_visible(False)
            place.grid(color=_GRID, linewidth=0.6)
            place.set_axisbelow(True)
            place.set_ylabel("best validation error, %")
        _over_trials(places[0], scored)
        for place, key in zip(places[1:], done.space, strict=False):
            _against(place, done, scored, key)
        for place in places[count:]:
            place.set_visible(False)
        best = done.best
        title = f"{done.name}: {len(done.counted)} trials of {done.epochs} epochs"
        if best is not None:
            title += f", best {best.error:.2f} % (trial {best.number})"
        figure.suptitle(title, color=_INK, fontsize=11)
        drawn, labels = places[0].get_legend_handles_labels()
        figure.legend(drawn, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        with atomic_path(out) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
    return True


def _over_trials(place: Any, scored: Sequence[Tried]) -> None:
    _dots(place, scored, [(one, float(at)) for at, one in enumerate(scored, 1)])
    steps, so_far = [], None
    for at, one in enumerate(scored, 1):
        if one.ended is Ended.COMPLETE and (so_far is None or rank(one) < rank(so_far)):
            so_far = one
        if so_far is not None:
            steps.append((at, so_far.error))
    if steps:
        place.step(*zip(*steps, strict=True), where="post", color=_BEST, label="best so far")
    place.set_xlabel("trial")
    place.xaxis.set_major_locator(MaxNLocator(integer=True))


def _against(place: Any, done: Searched, scored: Sequence[Tried], key: str) -> None:
    kind = done.space[key]
    place.set_xlabel(f"{SECTION}.{key}")
    if isinstance(kind, Choice):
        names = [written(value) for value in kind.values]
        spread = _spread(scored)
        points = [(one, names.index(written(one.values[key])) + spread[one.number])
                  for one in scored]  # fmt: skip
        place.set_xticks(range(len(names)), names)
        place.set_xlim(-0.5, len(names) - 0.5)
    else:
        points = [(one, float(one.values[key])) for one in scored]
        if kind.log:
            place.set_xscale("log")
            place.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            place.xaxis.set_minor_formatter(NullFormatter())
        place.set_xlim(*_margin(kind))
    _dots(place, scored, points)
    best = done.best
    for one, at in points:
        if one is best:
            place.plot([at], [one.error], "o", markersize=11, fillstyle="none", color=_BEST)


def _margin(kind: Range) -> tuple[float, float]:
    if kind.log:
        ratio = (kind.high / kind.low) ** 0.05
        return kind.low / ratio, kind.high * ratio
    more = 0.05 * (kind.high - kind.low)
    return kind.low - more, kind.high + more


def _spread(scored: Sequence[Tried]) -> dict[int, float]:
    """Return small offsets, so that equal errors of one choice do not hide each other."""
    return {one.number: 0.3 * ((7 * at % 11) / 10 - 0.5) for at, one in enumerate(scored)}


def _dots(place: Any, scored: Sequence[Tried], points: Sequence[tuple[Tried, float]]) -> None:
    for ended, colour, label in (
        (Ended.STOPPED, _STOPPED, "stopped early"),
        (Ended.FAILED, "black", "failed"),
        (Ended.COMPLETE, _DONE, "complete"),
    ):
        found = [(at, one.error) for one, at in points if one.ended is ended]
        if found:
            place.plot(*zip(*found, strict=True), "o", markersize=5, color=colour, label=label)

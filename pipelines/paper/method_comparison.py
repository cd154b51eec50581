"""Curves of several methods over updates and over time, and who is where first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from pipelines.paper.compared_methods import METHODS
from pipelines.paper.experiment import Curve, CurveMark, Results, Trained
from pipelines.paper.sheet import Axis, Chart, Line, Rule, median


def by_updates(trained: Iterable[Trained], figure: str) -> tuple[Line, ...]:
    """Return the median and the range over seeds of a figure at each update."""
    lines = []
    for one in trained:
        tables = [dict(curve.series(figure)) for curve in one.curves.values()]
        shared = sorted(set.intersection(*(set(table) for table in tables)))
        points = [(float(at), [table[at] for table in tables]) for at in shared]
        lines.append(_line(one, points))
    return tuple(lines)


def by_seconds(trained: Iterable[Trained], figure: str) -> tuple[Line, ...]:
    """Return the same at the median wall-clock time of each update."""
    lines = []
    for one in trained:
        curves = [
            {mark.update: mark for mark in curve.marks if figure in mark.figures}
            for curve in one.curves.values()
        ]
        shared = sorted(set.intersection(*(set(curve) for curve in curves)))
        points = [
            (
                median([curve[at].seconds for curve in curves]),
                [curve[at].figures[figure] for curve in curves],
            )
            for at in shared
        ]
        lines.append(_line(one, points))
    return tuple(lines)


def charts(
    shown: Iterable[Trained],
    figures: Mapping[str, str],
    y: str,
    *,
    y_axis: Axis = "log",
    rules: Mapping[str, tuple[Rule, ...]] | None = None,
) -> tuple[Chart, ...]:
    """Return charts of figures, each against updates and against wall-clock time.

    Args:
        shown: The methods.
        figures: Names of figures, and what their charts are called.
        y: What the vertical axis shows, with its unit.
        y_axis: Its kind.
        rules: The paper's numbers, by figure.
    """
    found, methods = [], tuple(shown)
    for figure, title in figures.items():
        for against, x, lines in (
            ("updates", "updates", by_updates(methods, figure)),
            ("wall-clock time", "seconds", by_seconds(methods, figure)),
        ):
            chart = Chart(
                f"{title} against {against}",
                x,
                y,
                lines,
                (rules or {}).get(figure, ()),
                y_axis=y_axis,
                note="Median and range over seeds.",
            )
            found.append(chart)
    return tuple(found)


def _line(one: Trained, points: Sequence[tuple[float, list[float]]]) -> Line:
    shown = tuple((x, median(values), min(values), max(values)) for x, values in points)
    return Line(one.point.label, shown, ours=METHODS[one.point.method].whitened)


def at_end(one: Trained, figure: str) -> list[float]:
    """Return a figure at the end of each training."""
    return [curve.last.figures[figure] for curve in one.curves.values()]


def reached(curve: Curve, figure: str, level: float) -> CurveMark | None:
    """Return the first mark at which a figure is at most a level."""
    return next((m for m in curve.marks if m.figures.get(figure, math.inf) <= level), None)


def share(one: Trained, other: Trained, figure: str, quantity: str) -> tuple[float | None, float]:
    """Return when a method reaches the other's end, as a share of what the other took.

    Args:
        one: The method.
        other: Its median figure at the end is the level.
        figure: Smaller is better.
        quantity: "update" or "seconds", of a mark.

    Returns:
        The median over seeds (None if a seed does not reach it), and the level.
    """
    level = median(at_end(other, figure))
    whole = median([float(getattr(curve.last, quantity)) for curve in other.curves.values()])
    marks = [reached(curve, figure, level) for curve in one.curves.values()]
    if any(mark is None for mark in marks):
        return None, level
    return median([float(getattr(mark, quantity)) for mark in marks if mark]) / whole, level


def best(results: Results, figure: str, keys: Iterable[str]) -> Trained | None:
    """Return the point whose median at the end is least among these."""
    found = [results.there[key] for key in keys if key in results.there]
    return min(found, key=lambda one: median(at_end(one, figure)), default=None)


def seconds_per_example(one: Trained) -> float:
    """Return the median wall-clock seconds of an example."""
    return median([curve.last.seconds / curve.last.examples for curve in one.curves.values()])


def busy(results: Results) -> float:
    """Return the largest wall-clock time of a training ÷ its processor time."""
    return max(
        (
            curve.last.seconds / curve.last.processor
            for one in results.there.values()
            for curve in one.curves.values()
            if curve.last.processor > 0
        ),
        default=1.0,
    )

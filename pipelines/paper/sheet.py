"""The content of a report, as plain values: what the page, the JSON and docs/paper.md show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Axis = Literal["linear", "log"]
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Line:
    """One method's curve.

    Attributes:
        name: What the legend calls it.
        points: (x, median, least, most) over the seeds.
        ours: Whether it is drawn as one of PRONG's.
    """

    name: str
    points: tuple[tuple[float, float, float, float], ...]
    ours: bool = False


@dataclass(frozen=True)
class Rule:
    """A number of the paper's text, drawn across a chart.

    Attributes:
        name: What is said beside it.
        value: On the y axis.
    """

    name: str
    value: float


@dataclass(frozen=True)
class Chart:
    """One pair of axes of the figure.

    Attributes:
        title: Of the chart.
        x: What the horizontal axis shows, with its unit.
        y: What the vertical axis shows, with its unit.
        lines: The curves.
        rules: The paper's numbers.
        x_axis: Kind of the horizontal axis.
        y_axis: Kind of the vertical axis.
        note: Said below it.
    """

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    rules: tuple[Rule, ...] = ()
    x_axis: Axis = "linear"
    y_axis: Axis = "log"
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """Matrices beside each other, as a PNG file in the report's folder.

    Attributes:
        title: Of the picture.
        file: Its name.
        note: Said below it.
    """

    title: str
    file: str
    note: str = ""


@dataclass(frozen=True)
class SheetTable:
    """A table.

    Attributes:
        title: Of the table.
        columns: Their heads.
        rows: Cells, as they are shown.
        note: Said below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class SheetTarget:
    """Something that was to be reached.

    Attributes:
        what: It is.
        limit: As it was set.
        found: What was reached; empty if it could not be measured.
        reached: Whether it was; None if it could not be measured.
        why: What is known of the reason, if it was missed.
    """

    what: str
    limit: str
    found: str
    reached: bool | None
    why: str = ""


@dataclass(frozen=True)
class Sheet:
    """The content of a report.

    Attributes:
        charts: The figure's axes.
        tables: The paper's numbers beside ours first.
        targets: What was to be reached.
        pictures: Files that were made for the report.
    """

    charts: tuple[Chart, ...]
    tables: tuple[SheetTable, ...]
    targets: tuple[SheetTarget, ...]
    pictures: tuple[Picture, ...] = ()


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as tables show it; a dash for none."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return "–"
    if value and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(_RAISED)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def spread(values: list[float], digits: int = 3) -> str:
    """Return a median with the least and the most of the values."""
    ordered = sorted(values)
    if not ordered:
        return "–"
    middle = median(ordered)
    if len(ordered) == 1:
        return number(middle, digits)
    ends = f"{number(ordered[0], digits)} to {number(ordered[-1], digits)}"
    return f"{number(middle, digits)} ({ends})"


def median(values: list[float]) -> float:
    """Return the median; of an even count, the mean of the middle two."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2

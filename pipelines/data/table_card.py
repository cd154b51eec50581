"""A table for people: a picture of its columns, and one row as a sample."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.data.fonts import font
from pipelines.data.prepared import Split
from pipelines.tasks.columns import FIRST, OTHER, Column
from pipelines.tasks.form import Form

_ACROSS, _WIDTH, _HEIGHT, _GAP, _TITLE = 4, 220, 120, 16, 22
_BINS, _BARS, _MOST = 24, 8, 28
_INPUT, _TARGET, _INK = "#4878a8", "#c05a3c", "#222222"
_UNKNOWN = "(another)"


def picture(split: Split, form: Form) -> Image.Image:
    """Draw what the targets and the first columns look like in a split.

    Args:
        split: Usually train.
        form: Of the data.
    """
    panels: list[Image.Image] = []
    if form.classes:
        counts = np.bincount(split.targets, minlength=len(form.classes))
        panels.append(_bars("target", form.classes, counts, _TARGET))
    for at, value in enumerate(form.values):
        panels.append(_histogram(f"target: {value.name}", split.targets[:, at], _TARGET))
    for at, column in enumerate(form.columns[: _MOST - len(panels)]):
        values = split.inputs[:, at]
        if column.kind == "number":
            panels.append(_histogram(column.name, values, _INPUT, dates=column.dates))
        else:
            names = ("missing", _UNKNOWN, *column.categories)
            counts = np.bincount(values.astype(np.int64), minlength=len(names))
            panels.append(_bars(column.name, names, counts, _INPUT))
    down = -(-len(panels) // _ACROSS)
    across = min(_ACROSS, len(panels))
    pitch = (_WIDTH + _GAP, _HEIGHT + _GAP)
    left = len(form.columns) + len(form.values) + bool(form.classes) - len(panels)
    size = (across * pitch[0] + _GAP, down * pitch[1] + _GAP + (_TITLE if left else 0))
    sheet = Image.new("RGB", size, "white")
    for place, panel in enumerate(panels):
        row, at = divmod(place, _ACROSS)
        sheet.paste(panel, (_GAP + at * pitch[0], _GAP + row * pitch[1]))
    if left:
        said = f"and {left} columns more"
        ImageDraw.Draw(sheet).text((_GAP, size[1] - _TITLE), said, fill=_INK, font=font(12))
    return sheet


def sample(split: Split, form: Form) -> str:
    """Return a CSV with one row, without the target: that with the fewest unknown categories."""
    unknown = (split.inputs[:, list(form.categories)] == OTHER).sum(axis=1)
    row = split.inputs[int(np.argmin(unknown))]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([column.name for column in form.columns])
    writer.writerow([cell(value, one) for value, one in zip(row, form.columns, strict=True)])
    return buffer.getvalue()


def cell(value: float, column: Column) -> str:
    """Return a number of a row as the cell that it comes from; empty where it is missing."""
    if column.kind == "category":
        names = ("", _UNKNOWN, *column.categories)
        return names[int(value)] if 0 <= value < FIRST + len(column.categories) else _UNKNOWN
    if value != value:
        return ""
    if column.dates:
        return _date(value)
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(float(value))


def _date(value: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=float(value))
    return moment.date().isoformat() if float(value).is_integer() else moment.isoformat()


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _panel(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    panel = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(panel)
    draw.text((0, 0), _short(title, 30), fill=_INK, font=font(13))
    return panel, draw


def _histogram(
    title: str, values: NDArray[np.float64], colour: str, *, dates: bool = False
) -> Image.Image:
    there = values[np.isfinite(values)]
    gaps = 1 - len(there) / max(len(values), 1)
    panel, draw = _panel(f"{title} ({gaps:.0%} missing)" if gaps else title)
    if not len(there):
        return panel
    low, high = (float(edge) for edge in np.quantile(there, (0.005, 0.995)))
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    # Shares of the range, because the range itself may not be a number that can be divided.
    places = np.clip((there / 2 - low / 2) / (high / 2 - low / 2), 0, 1) * (_BINS - 1e-6)
    counts = np.bincount(places.astype(np.int64), minlength=_BINS)
    floor, top = _HEIGHT - 16, _TITLE
    width = _WIDTH / _BINS
    for at, count in enumerate(counts):
        if count:
            tall = max(1, round((floor - top) * count / counts.max()))
            box = (round(at * width), floor - tall, round((at + 1) * width) - 2, floor)
            draw.rectangle(box, fill=colour)
    draw.line((0, floor + 1, _WIDTH, floor + 1), fill=_INK)
    ends = (_date(low // 1), _date(high // 1)) if dates else (f"{low:.4g}", f"{high:.4g}")
    draw.text((0, floor + 2), ends[0], fill=_INK, font=font(11))
    right = draw.textlength(ends[1], font=font(11))
    draw.text((_WIDTH - right, floor + 2), ends[1], fill=_INK, font=font(11))
    return panel


def _bars(title: str, names: Sequence[str], counts: NDArray[np.int64], colour: str) -> Image.Image:
    order = [at for at in np.argsort(-counts, kind="stable") if counts[at]]
    more = len(order) - _BARS
    panel, draw = _panel(f"{title} (and {more} more)" if more > 0 else title)
    tall = (_HEIGHT - _TITLE) // _BARS
    for row, at in enumerate(order[:_BARS]):
        top = _TITLE + row * tall
        draw.text((0, top - 1), _short(names[at], 14), fill=_INK, font=font(10))
        long = max(1, round((_WIDTH - 130) * counts[at] / counts.max()))
        draw.rectangle((90, top + 1, 90 + long, top + tall - 3), fill=colour)
        draw.text((94 + long, top - 1), str(counts[at]), fill=_INK, font=font(10))
    return panel

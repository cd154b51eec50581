"""From the cells of a table to rows of numbers: for training and for prediction alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.core.text import shown
from pipelines.data.table_cells import days, label, labels, number, numbers
from pipelines.data.table_columns import Kept
from pipelines.data.table_file import Table
from pipelines.tasks.columns import FIRST, MISSING, OTHER, Column


def encode(table: Table, columns: Sequence[Column]) -> tuple[NDArray[np.float64], list[str]]:
    """Return a table as rows, and what is wrong with it.

    Columns are found by name; those that the model does not know are passed over. A category that
    training did not see is another one, not a fault.

    Args:
        table: As it was read.
        columns: Of the model.

    Returns:
        float64 [n, columns], see `pipelines.tasks.columns`; and one text for each fault: a column
        that is absent, or a cell that holds no finite number. Such cells are missing in the rows.
    """
    rows = np.full((len(table), len(columns)), np.nan)
    absent = [shown(column.name) for column in columns if column.name not in table.cells]
    faults = [f"no column {name}" for name in absent]
    for at, column in enumerate(columns):
        cells = table.cells.get(column.name)
        if cells is None:
            continue
        if column.kind == "category":
            rows[:, at] = _codes(cells, column.categories)
            continue
        rows[:, at] = _numbers(cells, column.dates)
        for row in np.flatnonzero(~np.isfinite(rows[:, at])).tolist():
            if cells[row]:
                needed = "a date as 2024-12-31" if column.dates else "a finite number"
                faults.append(
                    f"line {table.lines[row]}: {shown(column.name)} = {shown(cells[row])[:60]!r}, "
                    f"needed: {needed}"
                )
                rows[row, at] = np.nan
    return rows, faults


def _numbers(cells: Sequence[str], dates: bool) -> NDArray[np.float64]:
    """Return the numbers of a column [n]; NaN where it is missing or holds none."""
    if not dates and (found := numbers(cells)) is not None:
        return found
    read = {cell: days(cell) if dates else number(cell) for cell in set(cells)}
    return np.array([read[cell] for cell in cells], dtype=np.float64)


def _codes(cells: Sequence[str], categories: Sequence[str]) -> NDArray[np.float64]:
    places = {name: FIRST + place for place, name in enumerate(categories)}
    places[""] = MISSING
    numbers = all(number(name) is not None for name in categories)
    code = {
        cell: places.get(cell, places.get(label(cell), OTHER) if numbers else OTHER)
        for cell in set(cells)
    }
    return np.array([code[cell] for cell in cells], np.float64)


def learn(table: Table, kept: Sequence[Kept], train: Sequence[int]) -> tuple[Column, ...]:
    """Return what the rows of the train split say of each column; nothing else is looked at.

    A column that is empty there says nothing and is not among the result.

    Args:
        table: All rows.
        kept: The columns that go into the network.
        train: Places of the rows of the train split.
    """
    found = []
    for one in kept:
        cells = table.cells[one.name]
        own = [cells[at] for at in train]
        there = [cell for cell in own if cell]
        if not there:
            continue
        gaps = len(there) < len(own)
        if one.kind == "category":
            # Whether 3 and 3.0 are the same is a matter of the whole column, as it is for a hash.
            named = dict(zip(cells, labels(cells), strict=True))
            names = tuple(sorted({named[cell] for cell in there}))
            found.append(Column(one.name, "category", gaps=gaps, categories=names))
        else:
            dates = one.kind == "date"
            mean, deviation = spread(_numbers(there, dates).tolist())
            found.append(Column(one.name, "number", mean, deviation, gaps, dates=dates))
    return tuple(found)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation of numbers, 1 if all are equal; at least one is needed.

    Sums are exact, so the result does not depend on the order.
    """
    scale = max(1.0, max(abs(value) for value in values) / 1e100)  # squares stay finite
    scaled = [value / scale for value in values]
    mean = math.fsum(scaled) / len(scaled)
    square = math.fsum((value - mean) ** 2 for value in scaled) / len(scaled)
    deviation = math.sqrt(square) * scale
    usable = math.isfinite(deviation) and deviation > 1e-300 and min(values) != max(values)
    return mean * scale, deviation if usable else 1.0


Canonical = Mapping[str, Sequence[str] | NDArray[np.float64]]
"""Column → cells of which equal ones are equal: names of categories, or numbers with NaN, [n]."""


def canonical(table: Table, kept: Sequence[Kept]) -> Canonical:
    """Return the columns that are used so that equal cells are equal, however they are written."""
    return {
        one.name: labels(table.cells[one.name])
        if one.kind == "category"
        else _numbers(table.cells[one.name], one.kind == "date")
        for one in kept
    }


def content_hashes(columns: Canonical, n: int) -> list[str]:
    """Return the hex sha256 of each row's cells, which its split comes from.

    It depends on the names and cells of the columns that are used, not on their order, on other
    columns, on other rows, or on how a number is written.

    Args:
        columns: See `canonical`.
        n: How many rows there are.
    """
    numbers = sorted(name for name, cells in columns.items() if isinstance(cells, np.ndarray))
    texts = sorted(columns.keys() - set(numbers))
    # Cells and names hold no zero byte, and a number has 8 bytes: no row can stand for another.
    start = hashlib.sha256("\0".join([*numbers, "", *texts]).encode())
    table = np.stack([columns[name] for name in numbers], axis=1) if numbers else np.empty((n, 0))
    content = np.where(np.isnan(table), np.nan, table).astype("<f8").tobytes()
    width = 8 * len(numbers)
    rows = zip(*(columns[name] for name in texts), strict=True) if texts else ((),) * n
    hashes = []
    for at, cells in enumerate(rows):
        digest = start.copy()
        digest.update(content[at * width : (at + 1) * width])
        digest.update("\0".join(cells).encode())
        hashes.append(digest.hexdigest())
    return hashes

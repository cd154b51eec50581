"""From the cells of a table to rows of numbers: for training and for prediction alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.core.text import shown
from pipelines.data.table_cells import days, label, labels, number
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
        read = {cell: _number(cell, column.dates) for cell in set(cells)}
        rows[:, at] = [read[cell] for cell in cells]
        wrong = {cell for cell, value in read.items() if not math.isfinite(value)} - {""}
        if wrong:
            needed = "a date as 2024-12-31" if column.dates else "a finite number"
            faults += [
                f"line {line}: {shown(column.name)} = {shown(cell)[:60]!r}, needed: {needed}"
                for line, cell in zip(table.lines, cells, strict=True)
                if cell in wrong
            ]
            rows[~np.isfinite(rows[:, at]), at] = np.nan
    return rows, faults


def _number(cell: str, dates: bool) -> float:
    value = days(cell) if dates else number(cell)
    return math.nan if value is None else value


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
            mean, deviation = spread([_number(cell, dates) for cell in there])
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


def canonical(table: Table, one: Kept) -> Sequence[str | float]:
    """Return a column's cells, equal ones equal: names of categories, or numbers with NaN."""
    cells = table.cells[one.name]
    if one.kind == "category":
        return labels(cells)
    read = {cell: _number(cell, one.kind == "date") for cell in set(cells)}
    return [read[cell] for cell in cells]


def content_hashes(table: Table, kept: Sequence[Kept]) -> list[str]:
    """Return the hex sha256 of each row's cells, which its split comes from.

    It depends on the names and cells of the columns that are used, not on their order, on other
    columns, on other rows, or on how a number is written.
    """
    ordered = sorted(kept, key=lambda one: one.name)
    # Cells hold no zero byte: nothing can stand for another row.
    head = b"\0\0".join(f"{one.name}\0{one.kind}".encode() for one in ordered)
    start = hashlib.sha256(head)
    columns = [
        [cell if isinstance(cell, str) else "" if cell != cell else cell.hex() for cell in cells]
        for cells in (canonical(table, one) for one in ordered)
    ]
    hashes = []
    for cells in zip(*columns, strict=True):
        digest = start.copy()
        digest.update("\0".join(cells).encode())
        hashes.append(digest.hexdigest())
    return hashes

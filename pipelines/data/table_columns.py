"""Which columns of a table go into a network, as what, and why the others do not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.core.errors import UserError
from pipelines.core.text import shown
from pipelines.data.schema import listed
from pipelines.data.table_cells import decimal_comma, kind_of, like_date, number, numbers
from pipelines.data.table_file import Table, told
from pipelines.tasks.columns import MOST_CATEGORIES

FEW = 20
"""Different texts that a column may have however few rows there are."""
ALMOST_ALL = 0.9
"""Share of different texts from which on a column names its rows instead of describing them."""


@dataclass(frozen=True)
class Kept:
    """A column that goes into the network.

    Attributes:
        name: As in the header.
        kind: What its cells are.
    """

    name: str
    kind: Literal["number", "date", "category"]


def choose(
    table: Table, leave_out: Collection[str], as_categories: Collection[str]
) -> tuple[list[Kept], list[str]]:
    """Return the columns that go into the network, in the table's order, and notes on the others.

    Args:
        table: Without the target.
        leave_out: Columns not to use.
        as_categories: Columns whose numbers are names.

    Raises:
        UserError: If a number is infinite or written with a comma.
    """
    kept: list[Kept] = []
    notes: list[str] = []
    empty: list[str] = []
    same: list[str] = []
    for name, cells in table.cells.items():
        if name in leave_out:
            continue
        distinct = set(cells) - {""}
        if not distinct:
            empty.append(name)
            continue
        kind = kind_of(distinct)
        if kind == "number":
            _must_be_finite(table, name, cells)
        if len(distinct) + ("" in cells) == 1:
            same.append(name)
            continue
        if kind == "text" or name in as_categories:
            why = _unusable(table, name, cells, distinct)
            if why:
                notes.append(f"column {shown(name)} left out: {why}")
                continue
            notes += _mixed(name, cells, distinct)
            kept.append(Kept(name, "category"))
        else:
            notes += _counts_rows(name, cells) if kind == "number" else []
            kept.append(Kept(name, "number" if kind == "number" else "date"))
    for name, kind_said in table.unread.items():
        if name not in leave_out:
            notes.append(f"column {shown(name)} left out: {kind_said} is no kind of cell")
    if empty:
        notes.append(f"{listed(_shown(empty), 'column', 'columns')} left out: all cells missing")
    if same:
        notes.append(f"{listed(_shown(same), 'column', 'columns')} left out: the same in all rows")
    return kept, notes


def _shown(names: Sequence[str]) -> list[str]:
    return [shown(name) for name in names]


def _must_be_finite(table: Table, name: str, cells: Sequence[str]) -> None:
    values = numbers(cells)
    if values is not None and np.isinf(values).any():
        faults = [
            f"line {table.lines[at]}: {shown(name)} = {cells[at]}: not a finite number"
            for at in np.flatnonzero(np.isinf(values)).tolist()
        ]
        raise UserError(told(table.where, faults, "cells are infinite or too large"))


def refuse_commas(table: Table, name: str) -> None:
    """Check that numbers are not written with a comma.

    Raises:
        UserError: If all cells that are there are numbers, some of them only so.
    """
    there = [cell for cell in table.cells[name] if cell]
    commas = {cell for cell in set(there) if decimal_comma(cell)}
    if commas and all(cell in commas or number(cell) is not None for cell in set(there)):
        line, cell = next(
            (line, cell)
            for line, cell in zip(table.lines, table.cells[name], strict=True)
            if cell in commas
        )
        raise UserError(
            f"{table.where}: line {line}: {shown(name)} = {cell!r}: a comma in a number; needed: "
            "a decimal point, as in 1.5, and nothing between thousands"
        )


def _unusable(table: Table, name: str, cells: Sequence[str], distinct: Collection[str]) -> str:
    """Return why a column of texts is of no use; empty if it is."""
    refuse_commas(table, name)
    there = sum(1 for cell in cells if cell)
    if all(like_date(cell) for cell in distinct):
        return f"dates that are not written as in 2024-12-31, such as {shown(min(distinct))}"
    if len(distinct) > max(FEW, ALMOST_ALL * there):
        return f"almost every row has another text, such as {shown(min(distinct))[:60]}"
    if len(distinct) > MOST_CATEGORIES:
        return f"{len(distinct)} categories, more than {MOST_CATEGORIES}"
    return ""


def _mixed(name: str, cells: Sequence[str], distinct: Collection[str]) -> list[str]:
    """Return a warning about a column of numbers with a few texts, which often are mistakes."""
    texts = {cell for cell in distinct if number(cell) is None}
    there = sum(1 for cell in cells if cell)
    odd = sum(1 for cell in cells if cell in texts)
    if not 0 < odd <= (1 - ALMOST_ALL) * there:
        return []
    said = listed([shown(cell)[:40] for cell in sorted(texts)], "text", "texts")
    return [f"column {shown(name)} is one of categories because of {said} among its numbers"]


def _counts_rows(name: str, cells: Sequence[str]) -> list[str]:
    """Return a warning about a column that numbers the rows."""
    values = numbers(cells)
    if values is None or len(cells) <= FEW:
        return []
    ordered = np.sort(values)
    if not (ordered[0].is_integer() and (np.diff(ordered) == 1).all()):
        return []
    return [
        f"column {shown(name)} numbers the rows from {ordered[0]:.0f} to {ordered[-1]:.0f}; "
        "leave it out with data.leave_out unless that means something"
    ]

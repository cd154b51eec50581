"""The columns of a table: how a row becomes numbers.

A row is stored and handed to a network as float64 [columns]: a number as it is (NaN where it is
missing), a category as its code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError

MISSING, OTHER, FIRST = 0.0, 1.0, 2.0
"""Codes of a category: the cell is empty; it was not in the training split; the first known one."""
MOST_CATEGORIES = 1000
"""Categories that one column may have."""


@dataclass(frozen=True)
class Column:
    """One column of a table, as the training split shows it.

    Attributes:
        name: As in the table's first line.
        kind: `number` or `category`.
        mean: Of the numbers that are there; 0 for categories.
        deviation: Standard deviation of them, above 0; 1 for categories and for a constant column.
        gaps: Whether the training split has missing values; then "it is missing" is a feature.
        categories: Sorted; empty for numbers. The empty text is not among them: it is missing.
        dates: Whether the table holds dates, which become numbers: days since 1970-01-01, UTC.
    """

    name: str
    kind: Literal["number", "category"]
    mean: float = 0.0
    deviation: float = 1.0
    gaps: bool = False
    categories: tuple[str, ...] = ()
    dates: bool = False

    @property
    def features(self) -> int:
        """How many inputs of the network it becomes."""
        return (len(self.categories) if self.kind == "category" else 1) + self.gaps

    def problem(self) -> str:
        """Return what is wrong with the description; empty if nothing is."""
        if self.kind == "number":
            sound = math.isfinite(self.mean) and math.isfinite(self.deviation)
            if not (sound and self.deviation > 0 and not self.categories):
                return f"column {self.name!r}: a finite mean and a deviation above 0 are needed"
        elif not 1 <= len(self.categories) <= MOST_CATEGORIES:
            return f"column {self.name!r}: 1 to {MOST_CATEGORIES} categories are needed"
        elif "" in self.categories or len(set(self.categories)) != len(self.categories):
            return f"column {self.name!r}: a category is empty or occurs twice"
        return ""


def codes(texts: Sequence[str | None], categories: Sequence[str]) -> NDArray[np.float64]:
    """Return the codes [n] of a column's cells; None and the empty text are missing."""
    places = {name: FIRST + place for place, name in enumerate(categories)}
    return np.array([places.get(text, OTHER) if text else MISSING for text in texts], np.float64)


def texts(codes: NDArray[np.float64], categories: Sequence[str]) -> NDArray[np.object_]:
    """Return the cells [n] that have these codes; one that is not known becomes a text that is not.

    Raises:
        ValueError: If a code is none.
    """
    unknown = "?"
    while unknown in categories:
        unknown += "?"
    table = np.array(["", unknown, *categories], dtype=object)
    if not np.isin(codes, np.arange(len(table))).all():
        raise ValueError(f"codes must be 0 to {len(table) - 1}")
    found: NDArray[np.object_] = table[codes.astype(np.int64)]
    return found


def recode(
    rows: NDArray[np.float64], held: Sequence[Column], wanted: Sequence[Column]
) -> NDArray[np.float64]:
    """Return rows of some columns as rows of others, which may know other categories.

    Args:
        rows: [n, columns], by `held`.
        held: The columns that the rows have.
        wanted: The columns that the result has; found by name, further ones of `held` left out.

    Raises:
        UserError: If a column is absent, or holds numbers here and categories there.
    """
    if held == wanted:
        return rows
    places = {column.name: at for at, column in enumerate(held)}
    found = np.empty((len(rows), len(wanted)), np.float64)
    for at, column in enumerate(wanted):
        if column.name not in places:
            raise UserError(f"the model needs a column {column.name!r}, and the data have none")
        own = held[places[column.name]]
        if own.kind != column.kind:
            raise UserError(
                f"column {column.name!r} holds a {column.kind} for the model, and a {own.kind} in "
                "the data"
            )
        cells = rows[:, places[column.name]]
        if column.kind == "category" and own.categories != column.categories:
            cells = codes(texts(cells, own.categories).tolist(), column.categories)
        found[:, at] = cells
    return found

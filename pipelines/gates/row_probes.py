"""Rows that are disturbed, to see how much a model relies on each cell being right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipelines.data.prepared import Split
from pipelines.tasks.columns import FIRST, MISSING, OTHER
from pipelines.tasks.form import Form

GREY_LEVELS = 80.0
"""How many grey levels of `gates.noise` count as one standard deviation of a number."""
MOST_COLUMNS = 20
"""Columns that are made missing, one at a time: the first ones of the table."""
_FAR = 1e6  # standard deviations


def noisy(split: Split, form: Form, deviation: float) -> dict[str, Split]:
    """Return a split with Gaussian noise on every number, the same at every call.

    Its deviation is `deviation` / 80 of the column's in the train split: a tenth at 8 grey levels,
    the default. Cells that are missing stay so. Rows without numbers have no noise.

    Args:
        split: Rows; not changed.
        form: Of the data.
        deviation: `gates.noise`.
    """
    numbers = list(form.numbers)
    if not numbers:
        return {}
    rows = split.inputs.copy()
    deviations = np.array([form.columns[at].deviation for at in numbers])
    drawn = np.random.default_rng(0).standard_normal((len(rows), len(numbers)))
    share = deviation / GREY_LEVELS
    rows[:, numbers] += drawn * deviations * share
    return {f"under noise of {share:g} deviations": replace(split, inputs=rows)}


def incomplete(split: Split, form: Form) -> dict[str, Split]:
    """Return copies of a split in which one column is missing in every row.

    Args:
        split: Rows; not changed.
        form: Of the data; each of the first `MOST_COLUMNS` columns has its copy.
    """
    found = {}
    for at, column in enumerate(form.columns[:MOST_COLUMNS]):
        rows = split.inputs.copy()
        rows[:, at] = np.nan if column.kind == "number" else MISSING
        found[f"without {column.name}"] = replace(split, inputs=rows)
    return found


def extreme_rows(form: Form) -> dict[str, NDArray[np.float64]]:
    """Return rows that no model may fail on, by name, float64 [1, columns] each.

    Every cell missing; every number a million deviations above and below its mean; every category
    unknown. Other numbers are the mean, other categories the first one.

    Args:
        form: Of the data.
    """
    usual = [c.mean if c.kind == "number" else FIRST for c in form.columns]
    number = np.array([column.kind == "number" for column in form.columns])
    far = np.array([_FAR * column.deviation for column in form.columns])
    found = {"all missing": np.where(number, np.nan, MISSING)}
    if number.any():
        found["very large numbers"] = np.where(number, usual + far, usual)
        found["very small numbers"] = np.where(number, usual - far, usual)
    if not number.all():
        found["unknown categories"] = np.where(number, usual, OTHER)
    return {name: row[None] for name, row in found.items()}

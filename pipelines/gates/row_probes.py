"""Rows that are disturbed, to see how much a model relies on each cell being right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipelines.data.prepared import Split
from pipelines.tasks.columns import MISSING, OTHER
from pipelines.tasks.form import Form

GREY_LEVELS = 80.0
"""How many grey levels of `gates.noise` count as one standard deviation of a number."""
MOST_COLUMNS = 20
"""Columns that are made missing, one at a time: the first ones of the table."""
_FAR = 1e6  # standard deviations


def probes(split: Split, form: Form, noise: float) -> dict[str, Split]:
    """Return disturbed copies of a split by name; targets and hashes are as they were.

    `noise` adds Gaussian noise to every number: `noise` / 80 of the column's standard deviation in
    train, a tenth at the default of 8.0. `NAME missing` has an empty cell in one column of all
    rows. A split of rows without numbers has no `noise`.

    Args:
        split: Rows.
        form: Of the model.
        noise: `gates.noise`.
    """
    found: dict[str, Split] = {}
    numbers = list(form.numbers)
    if numbers:
        rows = split.inputs.copy()
        deviations = np.array([form.columns[at].deviation for at in numbers])
        drawn = np.random.default_rng(0).standard_normal((len(rows), len(numbers)))
        rows[:, numbers] += drawn * deviations * (noise / GREY_LEVELS)
        found["noise"] = replace(split, inputs=rows)
    for at, column in enumerate(form.columns[:MOST_COLUMNS]):
        rows = split.inputs.copy()
        rows[:, at] = np.nan if column.kind == "number" else MISSING
        found[f"{column.name} missing"] = replace(split, inputs=rows)
    return found


def extreme_rows(form: Form) -> NDArray[np.float64]:
    """Return rows that no model may fail on, float64 [4, columns].

    All cells missing; every number a million standard deviations above its mean, then below, then
    all categories unknown. Where nothing is said of a column, its number is the mean and its
    category the first one.

    Args:
        form: Of the model.
    """
    rows = np.empty((4, len(form.columns)))
    for at, column in enumerate(form.columns):
        if column.kind == "number":
            far = _FAR * column.deviation
            rows[:, at] = (np.nan, column.mean + far, column.mean - far, column.mean)
        else:
            rows[:, at] = (MISSING, OTHER + 1, OTHER + 1, OTHER)
    return rows

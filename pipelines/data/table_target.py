"""What a table is to predict: the columns, the task, the targets; and what gives them away."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.core.text import shown
from pipelines.data.table_cells import kind_of, labels, number
from pipelines.data.table_columns import refuse_commas
from pipelines.data.table_file import Table, told
from pipelines.tasks.form import CLASSIFICATION, REGRESSION

FEW_VALUES = 20
"""Different whole numbers that a target may have and still count as classes."""
MOST_CLASSES = 1000
_BY_CHANCE = 10
"""Rows from which on one column does not determine another by chance."""


@dataclass(frozen=True)
class Target:
    """What the rows are to be answered with.

    Attributes:
        names: The columns.
        task: The name of the task, `auto` resolved.
        classes: Sorted, numbers by their value; empty where values are predicted.
        targets: int64 labels [n], or float64 values [n, columns].
    """

    names: tuple[str, ...]
    task: str
    classes: tuple[str, ...]
    targets: NDArray[Any]


def columns_named(key: str, value: str, table: Table) -> tuple[str, ...]:
    """Return the columns that a setting names, separated by commas.

    A column whose own name holds a comma can be named alone.

    Args:
        key: Such as `data.target`, for messages.
        value: The setting; empty for none.
        table: Has them.

    Raises:
        UserError: If one is no column of the table.
    """
    known = [*table.cells, *table.unread]
    if value.strip() in known:
        return (value.strip(),)
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5) or known[:20]
            close = {other.lower(): other for other in known}.get(name.lower())
            said = ", ".join(map(shown, [close] if close else near))
            raise UserError(
                f"{key} = {value!r}: {table.where} has no column {shown(name)!r}; "
                f"near: {said} ({len(known)} columns in all)"
            )
    return names


def find(table: Table, names: tuple[str, ...], task: str) -> Target:
    """Return the targets of a table's rows.

    Args:
        table: Every row has a target.
        names: The columns to predict.
        task: `task.name`; `auto` is resolved: several columns, more than `FEW_VALUES` different
            numbers or fractions among them are a regression, everything else a classification.

    Raises:
        UserError: If the column has one value only, or the task does not suit it.
    """
    for name in names:
        if len(set(table.cells[name])) == 1:
            raise UserError(
                f"data.target = {name!r}: one value only ({shown(table.cells[name][0])[:60]}) in "
                f"{table.where}; there is nothing to learn"
            )
    numeric = [kind_of(set(table.cells[name])) == "number" for name in names]
    several = len(names) > 1
    measured = several or (numeric[0] and _measured(table.cells[names[0]]))
    if task == "auto":
        task = REGRESSION if measured else CLASSIFICATION
    if task == CLASSIFICATION or (task != REGRESSION and not measured):
        return _classes(table, names, task, measured=measured)
    for name, good in zip(names, numeric, strict=True):
        if not good:
            refuse_commas(table, name)
            line, cell = next(
                (line, cell)
                for line, cell in zip(table.lines, table.cells[name], strict=True)
                if number(cell) is None
            )
            raise UserError(
                f"data.target = {name!r}: line {line} of {table.where} holds "
                f"{shown(cell)[:60]!r}, which is no number; a {task} needs numbers"
            )
    return Target(names, task, (), _values(table, names))


def _measured(cells: Sequence[str]) -> bool:
    """Say whether numbers are measured values rather than names of classes."""
    values = [number(cell) for cell in set(cells)]
    whole = all(value is not None and value.is_integer() for value in values)
    return not whole or len(set(values)) > FEW_VALUES


def _classes(table: Table, names: Sequence[str], task: str, *, measured: bool) -> Target:
    if len(names) > 1:
        raise UserError(
            f"data.target = {', '.join(names)!r}: task.name = {task!r} takes one column, not "
            f"{len(names)}"
        )
    name = names[0]
    refuse_commas(table, name)
    cells = labels(table.cells[name])
    distinct = set(cells)
    fractions = [cell for cell in distinct if "." in cell and number(cell) is not None]
    if measured and fractions:
        raise UserError(
            f"task.name = {task!r}: the target {name!r} holds fractions, such as "
            f"{min(fractions)}; needed: task.name = {REGRESSION}, or classes"
        )
    if len(distinct) > MOST_CLASSES:
        raise UserError(
            f"data.target = {name!r}: {len(distinct)} different values, more than {MOST_CLASSES} "
            f"classes; needed: another column, or for numbers task.name = {REGRESSION}"
        )
    classes = tuple(sorted(distinct, key=_in_order))
    places = {cell: place for place, cell in enumerate(classes)}
    targets = np.array([places[cell] for cell in cells], dtype=np.int64)
    return Target(tuple(names), task, classes, targets)


def _in_order(cell: str) -> tuple[float, str]:
    value = number(cell)
    return (float("inf") if value is None else value, cell)


def _values(table: Table, names: Sequence[str]) -> NDArray[np.float64]:
    columns = []
    for name in names:
        values = np.array([number(cell) for cell in table.cells[name]], dtype=np.float64)
        faults = [
            f"line {table.lines[at]}: {shown(name)} = {table.cells[name][at]}: not a finite number"
            for at in np.flatnonzero(~np.isfinite(values)).tolist()
        ]
        if faults:
            raise UserError(told(table.where, faults, "targets are infinite or too large"))
        columns.append(values)
    return np.stack(columns, axis=1)


def give_away(
    columns: Mapping[str, Sequence[str] | NDArray[np.float64]], target: Target
) -> list[str]:
    """Return the columns that equal the target or determine it one to one.

    Args:
        columns: Name → cells [n]: names of categories, the empty text where missing, or numbers,
            NaN where missing.
        target: Of the same rows.
    """
    answers = target.targets.reshape(len(target.targets), -1)
    return [
        name
        for name, cells in columns.items()
        if any(
            _determines(cells, answers[:, at], measured=not target.classes)
            for at in range(answers.shape[1])
        )
    ]


def _determines(
    given: Sequence[str] | NDArray[np.float64], answers: NDArray[Any], *, measured: bool
) -> bool:
    texts = not isinstance(given, np.ndarray)
    if isinstance(given, np.ndarray):
        cells = given
    else:
        places = {cell: at for at, cell in enumerate(dict.fromkeys(given))} | {"": np.nan}
        cells = np.array([places[cell] for cell in given])
    there = ~np.isnan(cells)
    if 2 * there.sum() < len(cells):
        return False
    cells, answers, n = cells[there], answers[there], len(cells)
    if measured and not texts and len(cells) == n and np.array_equal(cells, answers):
        return True
    first, of = np.unique(cells, return_inverse=True)
    second, to = np.unique(answers, return_inverse=True)
    if n < _BY_CHANCE or not len(first) == len(second) > 1:
        return False
    pairs = np.unique(np.stack([of, to]), axis=1)
    if pairs.shape[1] != len(first):
        return False
    if not measured or 2 * len(first) < len(cells):
        return True
    # Of measured values all may differ in both columns: only the same order says something.
    steps = np.diff(pairs[1])
    return not texts and bool((steps > 0).all() or (steps < 0).all())

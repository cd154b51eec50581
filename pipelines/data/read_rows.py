"""The rows that a user asks a model about, read by the parser that training used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.core.text import shown
from pipelines.data import table_file
from pipelines.data.table_file import ENDINGS, LINES, Table, told
from pipelines.data.table_rows import encode
from pipelines.tasks.form import Form

STDIN = "-"
"""The path that means the standard input, with a CSV or lines of JSON."""


def read_rows(path: Path, form: Form) -> tuple[NDArray[np.float64], list[str]]:
    """Read a table for a model.

    Columns are found by name; others, such as the target, are passed over.

    Args:
        path: CSV, TSV, Parquet, or lines of JSON; `-` for the standard input.
        form: Of the model, which takes rows.

    Returns:
        Rows float64 [n, columns], and a short name for each: `FILE:LINE`; of Parquet the row.

    Raises:
        UserError: If it cannot be read, or naming all columns that are absent and all cells that
            hold no number where one is needed, 20 at most.
    """
    return encoded(_read(path), form)


def encoded(table: Table, form: Form) -> tuple[NDArray[np.float64], list[str]]:
    """Return a table's rows for a model, and a short name for each; see `read_rows`."""
    if form.kind != "rows":
        raise UserError(f"{table.where}: a table, but the model takes images")
    known = {*table.cells, *table.unread}
    absent = [column.name for column in form.columns if column.name not in known]
    if absent:
        most = ", ".join(map(shown, absent[: table_file.NAMED]))
        more = f" and {len(absent) - table_file.NAMED} more" * (len(absent) > table_file.NAMED)
        raise UserError(
            f"{table.where}: lacks {'column' if len(absent) == 1 else 'columns'} {most}{more}; "
            f"the model needs {len(form.columns)} columns, in any order"
        )
    rows, faults = encode(table, form.columns)
    if faults:
        raise UserError(told(table.where, faults, "cells do not fit the model"))
    return rows, [f"{table.where}:{line}" for line in table.lines]


def _read(path: Path) -> Table:
    name = str(path)
    if name == STDIN:
        content = sys.stdin.buffer.read()
        if content.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{"):
            return table_file.from_lines(content, "stdin")
        return table_file.from_bytes(content, "stdin")
    if not path.exists():
        raise UserError(f"{shown(name)}: does not exist")
    if name.lower().endswith(LINES):
        try:
            return table_file.from_lines(path.read_bytes(), shown(name))
        except OSError as error:
            raise UserError(f"{shown(name)}: cannot be read: {error.strerror}") from None
    if not table_file.is_table(name):
        allowed = ", ".join((*ENDINGS, *LINES))
        raise UserError(f"{shown(name)}: no table; allowed: {allowed}, or - for standard input")
    return table_file.read(path, shown(name))


def from_records(records: list[dict[str, Any]], form: Form) -> NDArray[np.float64]:
    """Return the rows of records, such as those of a request; a name one lacks is missing in it.

    Raises:
        UserError: See `read_rows`.
    """
    return encoded(table_file.from_records(records, "records"), form)[0]

"""What one cell of a table means: the only place that reads a number, a date or a gap.

Preparation and prediction both call it, so a network always gets rows that were made in the same
way. A cell is a text, as it stands in a CSV.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

GAPS = ("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "?")
"""What an empty cell may hold, in lower case."""
Kind = Literal["number", "date", "text"]

_GAPS = frozenset(GAPS)
_LONGEST_WORD = len("false")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r"[0-9eE.+-]*")
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)
_COMMA = re.compile(r"[+-]?[0-9][0-9.']*,[0-9]+(?:[eE][+-]?[0-9]+)?|[+-]?,[0-9]+")
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
_LIKE_DATE = re.compile(
    r"(?:[0-9]{4}[./][0-9]{1,2}[./][0-9]{1,2}|[0-9]{1,2}[./-][0-9]{1,2}[./-](?:[0-9]{4}|[0-9]{2}))"
    r"(?:[T ].*)?"
)
_START = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = 86_400.0


def clean(text: str) -> str:
    """Return a cell without white space around it; empty if it is missing.

    Text is in Unicode's composed form (NFC), and `True` and `FALSE` are in lower case.
    """
    cell = text.strip()
    if not cell.isascii():
        cell = unicodedata.normalize("NFC", cell)
    if len(cell) > _LONGEST_WORD:
        return cell
    lower = cell.lower()
    if lower in ("true", "false"):
        return lower
    return "" if lower in _GAPS else cell


def number(cell: str) -> float | None:
    """Return the number in a cell, infinite if it is too large; None if it holds no number."""
    if _NUMBER.fullmatch(cell):
        return float(cell) + 0.0  # no negative zero
    if _INFINITE.fullmatch(cell):
        return float(cell)
    return None


def numbers(cells: Sequence[str]) -> NDArray[np.float64] | None:
    """Return the numbers in a column, [n], NaN where missing; None if another cell holds none."""
    # What is made of these characters alone, `float` reads as `number` does, and far faster.
    if not _PLAIN.fullmatch("".join(cells)):
        for cell in dict.fromkeys(cells):
            if cell and number(cell) is None:
                return None
    try:
        return np.array([float(cell) if cell else math.nan for cell in cells]) + 0.0
    except ValueError:
        return None


def days(cell: str) -> float | None:
    """Return the days from 1970-01-01 to an ISO date or time, UTC unless it says otherwise."""
    if not _DATE.fullmatch(cell):
        return None
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:  # the 30th of February
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _START).total_seconds() / _DAY


def decimal_comma(cell: str) -> bool:
    """Say whether a cell is a number with a comma, as `1,5` or `1.234,5`."""
    return _COMMA.fullmatch(cell) is not None


def like_date(cell: str) -> bool:
    """Say whether a cell looks like a date that is not ISO's, whose order nobody can know."""
    return _LIKE_DATE.fullmatch(cell) is not None


def kind_of(cells: Iterable[str]) -> Kind:
    """Return what a column holds: `number` or `date` if every cell that is there is one."""
    there = [cell for cell in cells if cell]
    if numbers(there) is not None:
        return "number"
    return "date" if all(days(cell) is not None for cell in there) else "text"


def label(cell: str) -> str:
    """Return the name of the category that a number is: `3` of `3.0`; other text as it is."""
    value = number(cell)
    if value is None or abs(value) == float("inf"):
        return cell
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def labels(cells: Sequence[str]) -> list[str]:
    """Return the names of categories of a column.

    Where all of them are numbers, `3` and `3.0` are the same one; otherwise `1.10` and `1.1` of a
    list of versions stay what they are.
    """
    distinct = set(cells)
    if kind_of(distinct) != "number":
        return list(cells)
    named = {cell: label(cell) for cell in distinct}
    return [named[cell] for cell in cells]

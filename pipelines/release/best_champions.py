"""The best there ever were: what keeps many small steps down from adding up."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.registry.statements import Statement

REMEMBERED = 10
"""Versions of the data whose best champion is scored again on the present gate split."""


def best_champions(released: Sequence[Statement]) -> list[Statement]:
    """Return the best champion of each version of the data, by the errors in their statements.

    Errors on one version of the data can be compared. Those on different versions cannot, so the
    gates score each of these versions again, on the images of today.

    Args:
        released: Of every version that ever was champion, newest first.
    """
    bests: dict[str, Statement] = {}
    for statement in released:
        data = statement.made_from.get("data_hash", "")
        if data not in bests or _error(statement) < _error(bests[data]):
            bests[data] = statement
    return list(bests.values())[:REMEMBERED]


def _error(statement: Statement) -> float:
    return float("inf") if statement.error is None else statement.error

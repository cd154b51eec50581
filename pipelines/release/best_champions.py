"""The best there ever were: what keeps many small steps down from adding up."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.registry.versions import LINEAGE, METRIC, Version

REMEMBERED = 10
"""Versions of the data whose best champion is scored again on the present gate split."""


def best_champions(champions: Sequence[Version]) -> list[Version]:
    """Return the best champion of each version of the data, by the errors recorded.

    Recorded errors on one version of the data can be compared. Those on different versions cannot,
    so the gates score each of these versions again, on the images of today.

    Args:
        champions: Every version that ever was champion, newest first.
    """
    bests: dict[str, tuple[float, Version]] = {}
    for version in champions:
        recorded = _recorded(version)
        data = version.under(LINEAGE).get("data_hash", "")
        if data not in bests or recorded < bests[data][0]:
            bests[data] = (recorded, version)
    return [version for _, version in list(bests.values())[:REMEMBERED]]


def _recorded(version: Version) -> float:
    try:
        return float(version.tags.get(METRIC + "gate_error", "inf"))
    except ValueError:
        return float("inf")

"""The best there ever was: what keeps many small steps down from adding up."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card, load_split
from pipelines.evaluation.scoring import error
from pipelines.registry import version_files
from pipelines.registry.versions import LINEAGE, METRIC, Version
from pipelines.systems.onnx.runtime import OnnxModel

REMEMBERED = 10
"""Versions of the data whose best champion is scored again on the present gate split."""


def best_error(layout: Layout, champions: Sequence[Version]) -> float | None:
    """Return the lowest error on the present gate split of any version that was champion.

    Figures of one version of the data are compared as they were recorded; the best champion of
    each is then scored on the present images, because what a model scored on other images says
    nothing here.

    Args:
        layout: The checkout, whose gate split decides.
        champions: Every version that ever was champion, newest first.

    Returns:
        A share; None if no champion can be scored here.

    Raises:
        Unavailable: If the registry does not answer.
    """
    bests: dict[str, tuple[float, Version]] = {}
    for version in champions:
        recorded = _recorded(version)
        data = version.under(LINEAGE).get("data_hash", "")
        if data not in bests or recorded < bests[data][0]:
            bests[data] = (recorded, version)
    found = []
    for _, version in list(bests.values())[:REMEMBERED]:
        try:
            found.append(_score(layout, version))
        except Unavailable:
            raise
        except UserError:
            continue  # gone, or made for other images: nothing to hold anyone to
    return min((value for value in found if value is not None), default=None)


def _recorded(version: Version) -> float:
    try:
        return float(version.tags.get(METRIC + "gate_error", "inf"))
    except ValueError:
        return float("inf")


def _score(layout: Layout, version: Version) -> float | None:
    model = OnnxModel.load(version_files.version_file(layout, version), "cpu")
    split = load_split(layout.prepared, "gate")
    classes = load_card(layout.prepared).classes
    return error(model, split, classes).error if len(split.labels) else None

"""Judges a version: is it no worse than the champion on the gate split?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipelines import scoring
from pipelines.config import Params
from pipelines.gates.finding import Finding
from pipelines.layout import Layout

if TYPE_CHECKING:
    from pipelines.registry import Version


def judge(
    layout: Layout,
    params: Params,
    candidate: Version,
    champion: Version | None,
    best_error: float | None,
) -> tuple[Finding, ...]:
    """Return one finding per gate, in the list's order.

    Args:
        layout: The checkout; its gate split decides.
        params: `gates`.
        candidate: The version to judge.
        champion: The present champion, or None.
        best_error: The least share of wrong answers of all that ever were champion.

    Raises:
        Unavailable: If the registry does not answer.
    """
    return (_against_champion(layout, params.gates.margin, candidate, champion),)


def _against_champion(
    layout: Layout, margin: float, candidate: Version, champion: Version | None
) -> Finding:
    def found(verdict: str, reason: str, figure: float | None = None) -> Finding:
        limit = None if champion is None else margin
        return Finding("champion", verdict, figure, limit, reason)  # type: ignore[arg-type]

    new = scoring.gate_score(layout, candidate)
    if isinstance(new, str):
        return found("not run", f"version {candidate.number} cannot be scored: {new}")
    if not math.isfinite(new.error):
        return found("not run", "the gate split holds no images; raise data.gate")
    said = f"{new.errors} of {new.images} wrong"
    if champion is None:
        return found("pass", f"{said}; the first champion")
    old = scoring.gate_score(layout, champion)
    if isinstance(old, str):
        return found(
            "not run",
            f"champion version {champion.number} cannot be scored, so there is nothing to compare "
            f"with: {old}; set registry.model to another name to begin a new line of models",
        )
    said += f", champion version {champion.number} {old.errors}"
    gap = (new.errors - old.errors) / new.images
    # The shares are whole counts over the same images: compared without a rounding's luck.
    if new.errors <= old.errors + margin * new.images + 1e-9:
        return found("pass", said, gap)
    return found("fail", f"worse than the champion: {said}, margin {margin:g}", gap)

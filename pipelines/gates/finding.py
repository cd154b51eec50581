"""What a gate found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

GATES = ("champion",)
"""All gates, in the order in which they are shown."""


@dataclass(frozen=True)
class Finding:
    """One gate's answer about one version.

    Attributes:
        gate: Its name.
        verdict: `not run` blocks like `fail`.
        figure: What was measured, if anything was.
        limit: What it must not pass.
        reason: Why, in one line.
    """

    gate: str
    verdict: Literal["pass", "fail", "not run"]
    figure: float | None
    limit: float | None
    reason: str


def blocked(findings: Iterable[Finding]) -> list[Finding]:
    """Return all that did not pass; a gate without a finding counts as not run."""
    found = {finding.gate: finding for finding in findings}
    for gate in GATES:
        found.setdefault(gate, Finding(gate, "not run", None, None, "the gate was not run"))
    return [finding for finding in found.values() if finding.verdict != "pass"]

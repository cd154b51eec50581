"""What a gate found, and how it stands on a version: one tag per gate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Verdict = Literal["pass", "fail", "not run"]
PREFIX = "gate."
"""Of the tags that hold findings."""
LONGEST = 5000
"""Characters of a tag's value; the least limit of MLflow's stores."""
_REASON = 800  # of which JSON may make six each
_ROUNDING = 1e-9  # shares of whole counts, compared so that rounding does not decide


@dataclass(frozen=True)
class Finding:
    """What one gate came to.

    Attributes:
        gate: Its name in the list of gates.
        verdict: `pass`, `fail` or `not run`; only `pass` lets a version through.
        figure: What was measured, in the gate's own unit; None if nothing was.
        limit: What the figure is held to; None if the gate has no limit.
        reason: Why, in one line.
        figures: Further figures by name, such as `error` and `images` of the gate `champion`.
    """

    gate: str
    verdict: Verdict
    figure: float | None
    limit: float | None
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the gate lets the version through."""
        return self.verdict == "pass"

    def as_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON values; a figure that is not a number is None."""
        values = asdict(self) | {
            "figure": _finite(self.figure),
            "limit": _finite(self.limit),
            "figures": {key: _finite(value) for key, value in sorted(self.figures.items())},
        }
        return values if self.figures else {k: v for k, v in values.items() if k != "figures"}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def passed(gate: str, reason: str) -> Finding:
    """Return the finding that a gate without a figure passed."""
    return Finding(gate, "pass", None, None, reason)


def failed(gate: str, reason: str) -> Finding:
    """Return the finding that a gate without a figure failed."""
    return Finding(gate, "fail", None, None, one_line(reason))


def not_run(gate: str, reason: str) -> Finding:
    """Return the finding of a gate whose evidence could not be had."""
    return Finding(gate, "not run", None, None, one_line(reason))


def held_to(gate: str, figure: float, limit: float, reason: str, **figures: float) -> Finding:
    """Return a finding that passes if the figure is at most the limit; NaN is not."""
    verdict: Verdict = "pass" if figure <= limit + _ROUNDING else "fail"
    return Finding(gate, verdict, figure, limit, one_line(reason), figures)


def one_line(text: str) -> str:
    """Return a reason as one line of bounded length; a model's own words may be in it."""
    line = " ".join(text.split())
    return line if len(line) <= _REASON else f"{line[: _REASON - 1]}…"


def blocked(findings: Iterable[Finding], gates: Sequence[str] = ()) -> list[Finding]:
    """Return what stands between a version and the champion's place.

    Args:
        findings: Of one version.
        gates: All that must have run; one without a finding counts as not run.

    Returns:
        Every finding that is not `pass`, in the order of `gates`, then of `findings`.
    """
    found = {finding.gate: finding for finding in findings}
    names = [*gates, *(name for name in found if name not in gates)]
    every = [found.get(name) or not_run(name, "it was never run") for name in names]
    return [finding for finding in every if not finding.passed]


def tags(findings: Iterable[Finding]) -> dict[str, str]:
    """Return one tag per finding: `gate.NAME` → compact JSON of at most `LONGEST` characters."""
    return {
        PREFIX + finding.gate: json.dumps(
            finding.as_json(), separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        for finding in findings
    }


def from_tags(tags: Mapping[str, str]) -> tuple[Finding, ...]:
    """Return the findings that a version's tags hold; one that cannot be read is not run.

    Args:
        tags: All tags of a version; only `gate.*` is read.
    """
    found = []
    for key, text in tags.items():
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        try:
            finding = _parsed(json.loads(text))
            if finding.verdict not in get_args(Verdict) or finding.gate != name:
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            finding = not_run(name, "its tag does not hold a finding")
        found.append(finding)
    return tuple(found)


def _parsed(value: Mapping[str, Any]) -> Finding:
    def number(key: str) -> float | None:
        return None if value[key] is None else float(value[key])

    more = {k: float(v) for k, v in value.get("figures", {}).items() if v is not None}
    figure, limit = number("figure"), number("limit")
    return Finding(str(value["gate"]), value["verdict"], figure, limit, str(value["reason"]), more)

"""The champion and its variants side by side: error, size and speed, and which are released."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.core import tables
from pipelines.core.files import write_json
from pipelines.gates.finding import Finding
from pipelines.variants.approximated import VariantBase
from pipelines.variants.release_variant import VariantRelease, finding_of

LIVE, BLOCKED, NOT_MADE = "live", "blocked", "not made"
"""States of a variant: released; not let through by a gate, or put aside; could not be made."""


@dataclass(frozen=True)
class VariantRow:
    """A model, as it was measured; None where it was not.

    Attributes:
        name: Of the registered model.
        state: `live`, `blocked` or `not made`.
        version: Its number.
        reason: Why it is not live; else how it was made.
        error: Share of wrong answers on the gate split, or mean error, of 1.
        low: Lower end of the 95 % interval of the error.
        high: Upper end.
        agreement: Share of gate examples with another label than the champion's, or the mean
            difference of the answers relative to their spread.
        size: Bytes.
        p50_ms: Median time of one example alone, ms.
        throughput: Examples a second in batches of 256.
        blocked_by: Gates that did not let it through.
    """

    name: str
    state: str
    version: int | None
    reason: str
    error: float | None = None
    low: float | None = None
    high: float | None = None
    agreement: float | None = None
    size: float | None = None
    p50_ms: float | None = None
    throughput: float | None = None
    blocked_by: tuple[str, ...] = field(default=())


def row_of(released: VariantRelease, how: str) -> VariantRow:
    """Return the row of a variant that was judged, now or before."""
    decision = released.decision
    stopped = released.blocked_by
    state = LIVE if released.live else BLOCKED
    figures = _figures(decision.findings)
    agreement = finding_of(decision.findings, "agreement")
    reason = how if released.live else decision.reason
    return VariantRow(
        released.model,
        state,
        decision.version,
        reason,
        **_measured(figures, ""),
        agreement=None if agreement is None else agreement.figure,
        blocked_by=stopped,
    )


def champions_row(base: VariantBase, released: Sequence[VariantRelease]) -> VariantRow:
    """Return the row of the champion, as it was measured beside its variants.

    Where several were judged, the champion was measured beside each; the last one counts.
    """
    figures: dict[str, float] = {}
    for one in released:
        figures |= _figures(one.decision.findings)
    measured = _measured(figures, "champion_")
    size = float(base.path.stat().st_size)
    return VariantRow(base.model, LIVE, base.number, "the champion", **{**measured, "size": size})


def _figures(findings: Sequence[Finding]) -> dict[str, float]:
    found: dict[str, float] = {}
    for gate in ("champion", "size", "latency"):
        finding = finding_of(findings, gate)
        found |= {} if finding is None else dict(finding.figures)
    return found


def _measured(figures: Mapping[str, float], prefix: str) -> dict[str, Any]:
    names = {"size": "bytes"}
    return {
        name: figures.get(prefix + names.get(name, name))
        for name in ("error", "low", "high", "size", "p50_ms", "throughput")
    }


def as_json(rows: Sequence[VariantRow]) -> str:
    """Return the comparison as JSON."""
    return json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False)


def write(rows: Sequence[VariantRow], path: Path) -> None:
    """Write the comparison as a JSON file."""
    write_json(path, [asdict(row) for row in rows])


def show(rows: Sequence[VariantRow]) -> None:
    """Print the comparison as a table; the first row is the champion's."""
    champion = rows[0]
    printed = []
    for row in rows:
        style = {LIVE: "green", BLOCKED: "bold red"}.get(row.state, "yellow")
        said = f"{row.state}: {', '.join(row.blocked_by)}" if row.blocked_by else row.state
        printed.append(
            (
                row.name if row.version is None else f"{row.name} v{row.version}",
                tables.Styled(said, style),
                _share(row.error, row.low, row.high),
                "" if row.agreement is None else f"{row.agreement:.2%}",
                _ratio(row.size, champion.size, 1e-3, "kB"),
                _ratio(row.p50_ms, champion.p50_ms, 1.0, "ms"),
                _ratio(row.throughput, champion.throughput, 1.0, "/s"),
                row.reason,
            )
        )
    columns = ("model", "state", "error", "differs", "size", "p50, batch 1", "batch 256", "reason")
    tables.console().print(tables.table(columns, printed, title="variants", whole=("model",)))


def _share(error: float | None, low: float | None, high: float | None) -> str:
    if error is None:
        return ""
    interval = "" if low is None or high is None else f" [{low:.2%}, {high:.2%}]"
    return f"{error:.2%}{interval}"


def _ratio(value: float | None, champion: float | None, scale: float, unit: str) -> str:
    if value is None:
        return ""
    times = "" if not champion or value == champion else f" (× {value / champion:.2f})"
    return f"{value * scale:,.3g} {unit}{times}"

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
        times_p50: `p50_ms` as a multiple of the champion's, measured in turns with it.
        times_throughput: `throughput` likewise.
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
    times_p50: float | None = None
    times_throughput: float | None = None
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
        times_p50=_times(figures, "p50_ms"),
        times_throughput=_times(figures, "throughput"),
        agreement=None if agreement is None else agreement.figure,
        blocked_by=stopped,
    )


def champions_row(base: VariantBase, released: Sequence[VariantRelease]) -> VariantRow:
    """Return the row of the champion, as it was measured beside its variants.

    It was measured beside each that was judged; the first one counts. The ratios of a variant are
    those to the champion as it was measured beside that variant.
    """
    figures: dict[str, float] = {}
    for one in released:
        figures = {**_figures(one.decision.findings), **figures}
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


def _times(figures: Mapping[str, float], name: str) -> float | None:
    mine, champion = figures.get(name), figures.get(f"champion_{name}")
    return mine / champion if mine is not None and champion else None


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
                _sized(row.size, champion.size),
                _timed(row.p50_ms, row.times_p50, "ms"),
                _timed(row.throughput, row.times_throughput, "/s"),
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


def _sized(size: float | None, champion: float | None) -> str:
    times = None if size is None or not champion or size == champion else size / champion
    return _timed(None if size is None else size / 1000, times, "kB")


def _timed(value: float | None, times: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.3g} {unit}" + ("" if times is None else f" (× {times:.2f})")

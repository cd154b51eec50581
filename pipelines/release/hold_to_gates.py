"""`prong gates`: any version held to every gate, and why it may or may not be champion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from pipelines.core import tables
from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.gates.finding import Finding, blocked
from pipelines.gates.judging import GATES
from pipelines.release.decision import judged, write_findings
from pipelines.release.transaction import transaction

_STYLE = {"pass": "green", "fail": "bold red", "not run": "yellow"}


def hold_to_gates(layout: Layout, params: Params, model: str, version: int) -> tuple[Finding, ...]:
    """Run every gate on a version and write the findings onto it; no alias moves.

    Args:
        layout: The checkout, whose gate split decides.
        params: The limits, in `gates`.
        model: The registered model's name.
        version: Its number.

    Returns:
        One finding per gate.

    Raises:
        UserError: If there is no such version, or its registration is not complete.
        Unavailable: If the registry does not answer.
    """
    params = replace(params, registry=replace(params.registry, model=model))
    with transaction(layout, model) as held:
        candidate = held.version(version)
        if not candidate.complete:
            raise UserError(f"{model} version {version}: its registration is not complete")
        candidate.require_no_variant()
        state = held.state()
    case = judged(layout, params, state, candidate)  # without the lease: nobody waits for it
    with transaction(layout, model) as held:
        write_findings(held, case)
    return case.findings


def show(model: str, version: int, findings: Sequence[Finding], *, as_json: bool) -> bool:
    """Print the findings on a version and say whether it may be champion.

    Args:
        model: The registered model's name.
        version: The version's number.
        findings: One per gate.
        as_json: Print JSON instead of a table.
    """
    stopped = [finding.gate for finding in blocked(findings, tuple(GATES))]
    if as_json:
        found = {
            "model": model,
            "version": version,
            "may_be_champion": not stopped,
            "blocked_by": stopped,
            "gates": [finding.as_json() for finding in findings],
        }
        print(json.dumps(found, indent=2, allow_nan=False))
        return not stopped
    rows = [
        (
            f.gate,
            tables.Styled(f.verdict, _STYLE[f.verdict]),
            _number(f.figure),
            _number(f.limit),
            f.reason,
        )
        for f in findings
    ]
    columns = ("gate", "verdict", "figure", "limit", "reason")
    console = tables.console()
    console.print(
        tables.table(columns, rows, title=f"{model} v{version}", whole=("gate", "verdict"))
    )
    if stopped:
        said = f"may not be champion: blocked by {', '.join(stopped)}"
        console.print(tables.line(said), soft_wrap=True)
    else:
        console.print(f"may be champion: all {len(findings)} gates let it through")
    return not stopped


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"

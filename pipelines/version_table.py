"""Versions as a table on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipelines.registry import LINEAGE, METRIC, Version, number


def show_versions(model: str, rows: Sequence[Version]) -> None:
    """Print versions as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=model, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("version", "alias", "test error", "parity", "gates", "commit", "data", "when"):
        table.add_column(column, overflow="fold")
    for row in rows:
        metrics, made = row.under(METRIC), row.under(LINEAGE)
        commit = made.get("git_commit", "")[:10]
        table.add_row(
            str(row.number) if row.complete else f"{row.number} (incomplete)",
            ", ".join(row.aliases),
            _figure("{:.2f} %", metrics.get("test_error")),
            _figure("{:.0e}", metrics.get("parity")),
            _gates(row),
            commit + (" *" if made.get("git_dirty") == "true" else ""),
            made.get("data_hash", "")[:10],
            row.created.astimezone().strftime("%Y-%m-%d %H:%M"),
        )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print("*: with uncommitted changes; lineage in full: prong models --json", style="dim")


def _gates(row: Version) -> str:
    blocked = [finding.gate for finding in row.findings if finding.verdict != "pass"]
    said = f"blocked: {', '.join(blocked)}" if blocked else "pass" if row.findings else ""
    return f"{said} {_figure('{:.2%}', row.under(METRIC).get('gate_error'))}".strip()


def _figure(form: str, text: str | None) -> str:
    value = number(text or "")
    return value if isinstance(value, str) else form.format(value)

"""The versions of a model, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.core import tables
from pipelines.gates.finding import blocked, from_tags
from pipelines.registry.versions import LINEAGE, METRIC, Version, number
from pipelines.training.start_files import parsed

_COLUMNS = ("version", "alias", "test error", "gate error", "gates", "parity", "commit", "data")


def show_versions(model: str, rows: Sequence[Version]) -> None:
    """Print versions as a table."""
    console = tables.console()
    starts = [parsed(row.under(LINEAGE).get("started_from", "")) for row in rows]
    columns, cells = [*_COLUMNS, "when"], [[*_cells(row)] for row in rows]
    if any(starts):
        columns.insert(-1, "started from")
        for row, start in zip(cells, starts, strict=True):
            row.insert(-1, f"v{start[0]}" if start else "")
    console.print(tables.table(columns, cells, title=model))
    console.print(
        "*: with uncommitted changes; lineage in full: prong models --json; "
        "reasons of the gates: prong gates VERSION",
        style="dim",
    )


def _cells(row: Version) -> tuple[str, ...]:
    metrics, made = row.under(METRIC), row.under(LINEAGE)
    commit = made.get("git_commit", "")[:10]
    return (
        str(row.number) if row.complete else f"{row.number} (incomplete)",
        ", ".join(row.aliases),
        _figure("{:.2f} %", metrics.get("test_error")),
        _figure("{:.2%}", metrics.get("gate_error")),
        _gates(row),
        _figure("{:.0e}", metrics.get("parity")),
        commit + (" *" if made.get("git_dirty") == "true" else ""),
        made.get("data_hash", "")[:10],
        row.created.astimezone().strftime("%Y-%m-%d %H:%M"),
    )


def _gates(version: Version) -> str:
    """Return the result of a version's gates in one or two words."""
    found = from_tags(version.tags)
    stopped = [finding.gate for finding in blocked(found)]
    if stopped:
        return f"blocked: {', '.join(stopped[:3])}{' …' if len(stopped) > 3 else ''}"
    return "pass" if found else ""


def _figure(form: str, text: str | None) -> str:
    value = number(text or "")
    return value if isinstance(value, str) else form.format(value)

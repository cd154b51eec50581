"""What this checkout has seen of a model's history: a registry that was cut back is noticed.

All of it is signed, so that it says nothing that the release key did not say; it can be put back
where the registry has lost it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipelines.core.errors import disk_error
from pipelines.core.files import sha256_json, write_json
from pipelines.core.paths import Layout
from pipelines.registry import history
from pipelines.registry.history import Entry
from pipelines.systems import tracking_address as tracking


@dataclass(frozen=True)
class Memory:
    """Signed texts that were seen.

    Attributes:
        entries: Of the history, oldest first.
        statements: Tag → the statement's text.
    """

    entries: tuple[Entry, ...] = ()
    statements: Mapping[str, str] = field(default_factory=dict)


_ADAPTER = TypeAdapter(dict[str, list[str] | dict[str, str]])


def _path(layout: Layout, model: str) -> Path:
    own = "own" if not os.environ.get("MLFLOW_TRACKING_URI") else tracking.tracking_uri(layout)
    name = sha256_json([tracking.shown_uri(own), model])[:32]
    return layout.state / "remembered" / f"{name}.json"


def recall(layout: Layout, model: str) -> Memory:
    """Return what was seen of a model; nothing if none was, or what was kept is damaged."""
    try:
        found = _ADAPTER.validate_json(_path(layout, model).read_bytes())
    except (FileNotFoundError, ValidationError):
        return Memory()
    texts, statements = found.get("entries", []), found.get("statements", {})
    if not isinstance(texts, list) or not isinstance(statements, dict):
        return Memory()
    entries = (history.parsed(text) for text in texts)
    return Memory(tuple(entry for entry in entries if entry is not None), statements)


def remember(
    layout: Layout, model: str, entries: tuple[Entry, ...], texts: Mapping[str, str]
) -> None:
    """Keep what was seen, unless it is known already.

    Args:
        layout: The checkout; where it may not be written nothing is kept.
        model: The registered model's name.
        entries: Of the history, whose newest is signed.
        texts: Tag → text of statements that were verified.
    """
    known = recall(layout, model)
    signed = tuple(entry for entry in entries if entry.key)
    statements = {**known.statements, **texts}
    if signed == known.entries and statements == known.statements:
        return
    kept = {"entries": [entry.text() for entry in signed], "statements": statements}
    try:
        write_json(_path(layout, model), kept)
    except OSError as error:
        if disk_error(error) is None:  # a full or read-only disk: answering comes first
            raise


def forget(layout: Layout, model: str) -> None:
    """Drop what was seen: its loss was accepted."""
    _path(layout, model).unlink(missing_ok=True)

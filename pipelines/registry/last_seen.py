"""What a registry released, by what is signed and lies here: without MLflow, whose start is slow.

A server begins with it, and it is what a server checks when it is told of another version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.provenance import keys
from pipelines.registry import history, memory, statements
from pipelines.registry.history import Entry
from pipelines.registry.statements import Statement


class NotSigned(UserError):
    """What was shown as a release is none: no trusted key signed it, or its parts do not fit."""


@dataclass(frozen=True)
class Release:
    """The champion by signed texts alone; its file is not looked at.

    Attributes:
        last: The newest entry of the history: it says what is live.
        entry: By which the version became champion with its statement; may be the same.
        statement: By which the version was released.
    """

    last: Entry
    entry: Entry
    statement: Statement


def cached_file(layout: Layout, sha256: str) -> Path:
    """Return where a downloaded model of this hash lies, or would."""
    return layout.state / "cache" / f"{sha256}.onnx"


def cached_drift(layout: Layout, sha256: str) -> Path:
    """Return where a downloaded drift graph of this hash lies, or would."""
    return layout.state / "cache" / f"{sha256}.drift.onnx"


def drift_sha256(statement: Statement) -> str:
    """Return the hash of the drift graph that was released with a version; empty if none was."""
    found = statement.made_from.get("drift_sha256", "")
    return found if re.fullmatch(r"[0-9a-f]{64}", found) else ""


def last_seen(layout: Layout, model: str) -> Release | None:
    """Return the champion that this checkout saw last; None if it saw none whose texts hold.

    Raises:
        UserError: If the setting of a key is wrong.
    """
    known, trusted = memory.recall(layout, model), tuple(keys.trusted_keys(layout))
    found = history.read({}, model, trusted, known.entries)
    if found.last is None or found.live is None:
        return None
    entry = found.release_of(found.live) or found.last
    text = known.statements.get(statements.tag_key(entry.statement), "")
    try:
        return verified(layout, model, found.last.text(), entry.text(), text)
    except NotSigned:
        return None


def verified(layout: Layout, model: str, last: str, entry: str, statement: str) -> Release:
    """Return a release after each of its texts was parsed and its signature checked.

    Args:
        layout: The checkout, whose keys are trusted.
        model: The registered model's name.
        last: The history's newest entry, as its tag holds it.
        entry: The entry by which its version came live.
        statement: The statement, as its tag holds it.

    Raises:
        NotSigned: If one does not hold, or they are not about one version of one file.
        UserError: If the setting of a key is wrong.
    """
    trusted = tuple(keys.trusted_keys(layout))
    newest, came, made = history.parsed(last), history.parsed(entry), statements.parsed(statement)
    for read, what in ((newest, "newest entry"), (came, "entry")):
        if read is None or not history.is_signed(read, model, trusted):
            raise NotSigned(f"{model}: no trusted key signed the history's {what}")
    assert newest is not None
    assert came is not None
    number = newest.version
    if number is None or came.version != number or made is None:
        raise NotSigned(f"{model}: what the registry shows names no one version as released")
    wanted = came.statement or made.hash  # of old entries the bytes alone were signed
    texts = {statements.tag_key(wanted): statement}
    found = statements.find(texts, trusted, model=model, version=number, wanted=wanted)
    if found is None or found.sha256 != came.sha256:
        raise NotSigned(f"{model} version {number}: no trusted key signed its statement")
    return Release(newest, came, found)

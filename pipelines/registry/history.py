"""What was live when, why and by whom: an append-only list, kept in the registry itself.

Each entry is one numbered tag of the registered model, so that all who use the registry see the
same list. An entry holds the hash of the entry before it and its own: one that was changed or
taken out is noticed. This module knows the list; `pipelines/release/transaction.py` writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from pipelines.core import tables
from pipelines.core.files import sha256_json

PREFIX = "prong.history."
LONGEST_REASON = 1000
"""Characters; a whole entry stays well below what the least of MLflow's stores takes (5000)."""
PROMOTED, ROLLED_BACK, FOUND, MOVED = "promoted", "rolled back", "found", "moved by hand"
"""Events: by the gates; to an earlier version; there when the list began; by other means."""


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Entry:
    """One change of what is live.

    Attributes:
        sequence: 1, 2, 3, …
        time: UTC, ISO 8601.
        event: One of the events above.
        version: The champion from then on; None if there was none.
        replaced: The champion before, or None.
        previous: What the alias `previous` named from then on, or None.
        by: user@host.
        run: Prefect's id of the run that did it; empty for a command.
        reason: Why, in one line.
        sha256: Of the version's ONNX file.
        error: The version's share of wrong answers on the gate split, if known.
        intent: Of the intent that it came from; none is carried out twice.
        before: Hash of the entry before; empty for the first.
        hash: sha256 over all of the above.
    """

    sequence: int
    time: str
    event: str
    version: int | None
    replaced: int | None
    previous: int | None
    by: str
    run: str
    reason: str
    sha256: str
    error: float | None
    intent: str
    before: str = ""
    hash: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON values."""
        found: dict[str, Any] = _ADAPTER.dump_python(self)
        return found

    def chained(self, sequence: int, before: str) -> Entry:
        """Return the entry at its place in the list, hashed."""
        values = {**self.as_json(), "sequence": sequence, "before": before}
        return Entry(**{**values, "hash": _hash(values)})

    def tag(self) -> tuple[str, str]:
        """Return key and value of the tag that holds it."""
        text = json.dumps(self.as_json(), ensure_ascii=False, separators=(",", ":"))
        return f"{PREFIX}{self.sequence:08d}", text


_ADAPTER = TypeAdapter(Entry)


def _hash(values: Mapping[str, Any]) -> str:
    return sha256_json({key: value for key, value in values.items() if key != "hash"})


@dataclass(frozen=True)
class History:
    """The list as a registry holds it.

    Attributes:
        entries: Oldest first; those that can be read.
        damage: What was changed, taken out or cannot be read; empty if all is well.
        next: The number of the next entry.
    """

    entries: tuple[Entry, ...]
    damage: tuple[str, ...]
    next: int

    @property
    def last(self) -> Entry | None:
        """The newest entry."""
        return self.entries[-1] if self.entries else None

    @property
    def lived(self) -> frozenset[int]:
        """Every version that ever was champion."""
        return frozenset(e.version for e in self.entries if e.version is not None)

    def before(self, version: int) -> int | None:
        """Return what preceded a version when it last became champion."""
        found = [entry.previous for entry in self.entries if entry.version == version]
        return found[-1] if found else None

    def put_aside(self, version: int) -> Entry | None:
        """Return the entry by which a version last ceased to be champion, or None."""
        found = [entry for entry in self.entries if entry.replaced == version]
        return found[-1] if found else None

    def has(self, intent: str) -> bool:
        """Say whether an intent's entry is there."""
        return any(entry.intent == intent for entry in self.entries)

    def append(self, entry: Entry) -> Entry:
        """Return an entry as the next of this list."""
        return entry.chained(self.next, self.last.hash if self.last else "")


def read(tags: Mapping[str, str]) -> History:
    """Return the list that a registered model's tags hold.

    Args:
        tags: All tags of the model.
    """
    found = {
        int(key.removeprefix(PREFIX)): value
        for key, value in tags.items()
        if re.fullmatch(re.escape(PREFIX) + r"\d{8,}", key)
    }
    entries, damage = [], []
    for number in sorted(found):
        try:
            entry = _ADAPTER.validate_json(found[number])
        except ValidationError:
            damage.append(f"entry {number} cannot be read")
            continue
        entries.append(entry)
        damage += _damage(number, entry, entries[:-1])
    missing = set(range(1, max(found, default=0) + 1)) - set(found)
    damage += [f"entry {number} is gone" for number in sorted(missing)]
    return History(tuple(entries), tuple(damage), max(found, default=0) + 1)


def _damage(number: int, entry: Entry, earlier: Sequence[Entry]) -> Iterator[str]:
    if entry.hash != _hash(entry.as_json()) or entry.sequence != number:
        yield f"entry {number} was changed"
    elif entry.before != (earlier[-1].hash if earlier else ""):
        yield f"entry {number} does not follow on the entry before it"


def show(model: str, history: History) -> None:
    """Print the list as a table, newest last."""
    rows = []
    for entry in history.entries:
        live, before = (
            "none" if number is None else f"v{number}" for number in (entry.version, entry.replaced)
        )
        when = entry.time[:19].replace("T", " ")
        number, run = str(entry.sequence), entry.run[:8]
        rows.append((number, when, entry.event, live, before, entry.by, run, entry.reason))
    columns = ("no.", "when (UTC)", "event", "live", "before", "by", "run", "reason")
    tables.console().print(tables.table(columns, rows, title=model))

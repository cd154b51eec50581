"""What was live when, why and by whom: an append-only, signed list, kept in the registry itself.

Each entry is one numbered tag of the registered model, so that all who use the registry see the
same list. An entry names the statement by which its version was released and the hash of the entry
before it, and is signed. The newest signed entry says what is live. One that was changed or taken
out is noticed, by the hashes and by what this checkout remembers (`memory.py`); one that no trusted
key signed counts for nothing. This module knows the list; `release/transaction.py` writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from pipelines.core import tables
from pipelines.core.files import sha256_json
from pipelines.provenance import keys
from pipelines.registry.outside import LONGEST, Id, Number, Share, Signature, Text, Time

PREFIX = "prong.history."
LONGEST_REASON = 1000
"""Characters; a whole entry stays well below what the least of MLflow's stores takes (5000)."""
PROMOTED, ROLLED_BACK, MIGRATED = "promoted", "rolled back", "migrated"
"""Events: by the gates; to an earlier version; taken over from an unsigned list."""
DROPPED, KEY_CHANGED, BEGUN_ANEW = "intent dropped", "key changed", "begun anew"
"""Events that leave the champion: an intent that could not be carried out; signed by another key;
what was lost before it is given up."""
_KIND = "history"
_Hash = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
_Short = Annotated[str, Field(max_length=300)]


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Entry:
    """One change of what is live.

    Attributes:
        sequence: 1, 2, 3, …; 0 while it has no place yet.
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
        hash: sha256 over all of these but the signature.
        statement: Hash of the statement by which the version was released.
        key: Fingerprint of the key; empty for an entry of the time before signatures.
        signature: Of the model's name and the hash, in base64.
    """

    sequence: Annotated[int, Field(ge=0, lt=10**8)]
    time: Time
    event: _Short
    version: Number | None
    replaced: Number | None
    previous: Number | None
    by: _Short
    run: _Short
    reason: Text
    sha256: _Hash
    error: Share | None
    intent: Id
    before: _Hash = ""
    hash: _Hash = ""
    statement: _Hash = ""
    key: _Hash = ""
    signature: Signature = ""

    def as_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON values."""
        found: dict[str, Any] = _ADAPTER.dump_python(self)
        return found

    def text(self) -> str:
        """Return the value of the tag that holds it."""
        values = self.as_json()
        if not self.key:
            values = {k: v for k, v in values.items() if k not in _SIGNED}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


_ADAPTER = TypeAdapter(Entry)
_SIGNED = ("statement", "key", "signature")


def parsed(text: str) -> Entry | None:
    """Return the entry that a tag holds; None if it holds none."""
    if len(text) > LONGEST:
        return None
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError:
        return None


def tag_key(sequence: int) -> str:
    """Return the name of the tag that holds the entry of a number."""
    return f"{PREFIX}{sequence:08d}"


def _hash(values: Mapping[str, Any]) -> str:
    left_out = {"hash", "signature"} if values["key"] else {"hash", *_SIGNED}
    return sha256_json({key: value for key, value in values.items() if key not in left_out})


def _is_whole(entry: Entry) -> bool:
    return entry.hash == _hash(entry.as_json()) and entry.sequence > 0


def is_signed(entry: Entry, model: str, trusted: Sequence[bytes]) -> bool:
    """Say whether a trusted key signed an entry of a model, and nothing in it was changed.

    Args:
        entry: Of its history.
        model: The registered model's name.
        trusted: Public keys, as PEM.
    """
    text = f"{model}\n{entry.hash}"
    return _is_whole(entry) and keys.is_signed(trusted, _KIND, text, entry.key, entry.signature)


@dataclass(frozen=True)
class History:
    """The list of a model, as far as it can be relied on.

    Attributes:
        entries: Oldest first, up to the newest signed one; those that can be read.
        damage: What was changed, taken out or cannot be read; empty if all is well.
        next: The number of the next entry.
        strays: Tags of the registry that no trusted key signed, by name.
        missing: Entries that this checkout remembers and the registry lacks.
        foreign: Whether it is signed, and by no trusted key.
    """

    entries: tuple[Entry, ...]
    damage: tuple[str, ...]
    next: int
    strays: tuple[str, ...] = ()
    missing: tuple[Entry, ...] = ()
    foreign: bool = False

    @property
    def signed(self) -> bool:
        """Whether a trusted key signed the newest entry, and with it all before."""
        return bool(self.entries and self.entries[-1].key)

    @property
    def last(self) -> Entry | None:
        """The newest entry that a trusted key signed: it says what is live."""
        return self.entries[-1] if self.signed else None

    @property
    def live(self) -> int | None:
        """The champion."""
        return None if self.last is None else self.last.version

    @property
    def lived(self) -> frozenset[int]:
        """Every version that ever was champion."""
        return frozenset(e.version for e in self.entries if e.version is not None)

    def was_live(self, version: int, sha256: str) -> bool:
        """Say whether a version of these bytes ever was champion: numbers may be used again."""
        return any(e.version == version and e.sha256 == sha256 for e in self.entries)

    def release_of(self, version: int) -> Entry | None:
        """Return the newest entry by which a version became champion with a statement."""
        found = [e for e in self.entries if e.version == version and e.statement]
        return found[-1] if found else None

    def before(self, version: int) -> int | None:
        """Return what preceded a version when it last became champion."""
        found = [
            entry.previous
            for entry in self.entries
            if entry.version == version and entry.event not in _LEAVE
        ]
        return found[-1] if found else None

    def put_aside(self, version: int) -> Entry | None:
        """Return the entry by which a version last ceased to be champion, or None."""
        found = [e for e in self.entries if e.replaced == version and e.version != version]
        return found[-1] if found else None

    def has(self, intent: str) -> bool:
        """Say whether an intent's entry is there."""
        return any(entry.intent == intent for entry in self.entries)

    def append(self, entry: Entry, model: str, private: Path) -> Entry:
        """Return an entry as the next of this list, signed.

        Args:
            entry: Without a place.
            model: The registered model's name.
            private: The release key.
        """
        before = self.entries[-1].hash if self.entries else ""
        public = keys.fingerprint(keys.public_of(private))
        values = {**entry.as_json(), "sequence": self.next, "before": before, "key": public}
        values["hash"] = _hash({**values, "signature": ""})
        _, values["signature"] = keys.sign_text(private, _KIND, f"{model}\n{values['hash']}")
        return Entry(**values)


_LEAVE = (DROPPED, KEY_CHANGED, BEGUN_ANEW)


def read(
    tags: Mapping[str, str],
    model: str,
    trusted: Sequence[bytes],
    remembered: Sequence[Entry] = (),
) -> History:
    """Return the list that a registered model's tags hold.

    Args:
        tags: All tags of the model.
        model: Its name.
        trusted: Public keys, as PEM.
        remembered: Entries that this checkout saw before; each counts if its signature holds.
    """
    there = {
        int(key.removeprefix(PREFIX)): value
        for key, value in tags.items()
        if re.fullmatch(re.escape(PREFIX) + r"\d{8}", key) and int(key.removeprefix(PREFIX))
    }
    known = {entry.sequence: entry for entry in remembered if entry.key and _is_whole(entry)}
    top = max([*there, *known], default=0)
    read = {number: parsed(text) for number, text in there.items()}
    # The newest that is signed pins all before it by their hashes; only it need be verified.
    candidates = (
        entry
        for number in range(top, 0, -1)
        for entry in (known.get(number), read.get(number))
        if entry is not None and entry.sequence == number and entry.key
    )
    last = next((entry for entry in candidates if is_signed(entry, model, trusted)), None)
    if last is None:
        return _unsigned(there, read)
    strays = [tag_key(number) for number in sorted(there) if number > last.sequence]
    damage = [f"entry {int(tag.removeprefix(PREFIX))} is not signed" for tag in strays]
    chain: list[Entry] = []
    missing: list[Entry] = []
    wanted = last.hash
    for number in range(last.sequence, 0, -1):
        if not wanted:
            break  # begun anew here: what was before was given up
        found, mine = read.get(number), known.get(number)
        if found is None or found.hash != wanted or not _is_whole(found):
            damage.append(f"entry {number} {'was changed' if number in there else 'is gone'}")
            found = mine
            if found is None or found.hash != wanted:
                break
            missing.append(found)
        chain.append(found)
        wanted = found.before
    return History(
        tuple(reversed(chain)),
        tuple(damage),
        last.sequence + 1,
        tuple(strays),
        tuple(reversed(missing)),
    )


def _unsigned(there: Mapping[int, str], read: Mapping[int, Entry | None]) -> History:
    """Return a list that no trusted key signed: of the time before signatures, or forged."""
    entries: list[Entry] = []
    damage: list[str] = []
    for number in sorted(there):
        entry = read[number]
        if entry is None:
            damage.append(f"entry {number} cannot be read")
            continue
        damage += _damage(number, entry, entries)
        entries.append(entry)
    missing = set(range(1, max(there, default=0) + 1)) - set(there)
    damage += [f"entry {number} is gone" for number in sorted(missing)]
    if any(entry.key for entry in entries):
        known = ", ".join(sorted({entry.key[:12] for entry in entries if entry.key}))
        said = f"no trusted key signed it (signed by: {known})"
        return History((), (said,), 1 + max(there), foreign=True)
    return History(tuple(entries), tuple(damage), max(there, default=0) + 1)


def _damage(number: int, entry: Entry, earlier: Sequence[Entry]) -> Iterator[str]:
    if not _is_whole(entry) or entry.sequence != number:
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

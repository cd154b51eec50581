"""What a command is about to do, written down and signed before it does it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from pipelines.core.files import sha256_json
from pipelines.provenance import keys
from pipelines.registry.history import Entry
from pipelines.registry.outside import LONGEST, Id, Name, Number, Signature

INTENT = "prong.intent"
"""Tag of the registered model."""
_KIND = "intent"
_Hash = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Intent:
    """What is to be once a command has come to its end.

    Attributes:
        command: Which one.
        id: Names the intent for good.
        after: Hash of the history's newest entry when it was written: it is carried out on no
            other.
        sha256: `register`: the bytes a version is to hold.
        aliases: Otherwise: alias → version, or None where it is to be taken away; in this order.
        entry: Otherwise: the history's entry, without its place in the list.
        key: Fingerprint of the key.
        signature: In base64.
    """

    command: Literal["register", "promote", "rollback"]
    id: Id
    after: _Hash = ""
    sha256: _Hash = ""
    aliases: dict[Name, Number | None] | None = None
    entry: Entry | None = None
    key: _Hash = ""
    signature: Signature = ""

    def text(self) -> str:
        """Return the value of the tag that holds it."""
        return json.dumps(_ADAPTER.dump_python(self), ensure_ascii=False, separators=(",", ":"))

    def _said(self, model: str) -> str:
        values: Mapping[str, Any] = _ADAPTER.dump_python(self)
        hashed = sha256_json({k: v for k, v in values.items() if k not in ("key", "signature")})
        return f"{model}\n{hashed}"

    def signed(self, model: str, private: Path) -> Intent:
        """Return the intent, signed by a private key, for one model."""
        key, signature = keys.sign_text(private, _KIND, self._said(model))
        return Intent(
            self.command,
            self.id,
            self.after,
            self.sha256,
            self.aliases,
            self.entry,
            key,
            signature,
        )

    def holds(self, model: str, trusted: Sequence[bytes]) -> bool:
        """Say whether a trusted key signed it for this model, and it can be understood."""
        complete = self.command == "register" or None not in (self.aliases, self.entry)
        said = self._said(model)
        return complete and keys.is_signed(trusted, _KIND, said, self.key, self.signature)


_ADAPTER = TypeAdapter(Intent)


@dataclass(frozen=True)
class Found:
    """An intent's tag.

    Attributes:
        intent: What it says; None if it cannot be relied on.
        wrong: Why it cannot; empty if it can.
    """

    intent: Intent | None
    wrong: str = ""


def read(text: str | None, model: str, trusted: Sequence[bytes]) -> Found:
    """Return the intent that a tag holds.

    Args:
        text: Of the tag; None where there is none.
        model: The registered model's name.
        trusted: Public keys, as PEM.
    """
    if text is None:
        return Found(None)
    try:
        found = _ADAPTER.validate_json(text) if len(text) <= 2 * LONGEST else None
    except ValidationError:
        found = None
    if found is None:
        return Found(None, f"the tag {INTENT} is not an intent")
    if not found.holds(model, trusted):
        return Found(None, f"the tag {INTENT} is not signed by a trusted key")
    return Found(found)

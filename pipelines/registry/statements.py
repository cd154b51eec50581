"""What the gates let pass: one signed statement per decision, as a tag of the version.

Only bytes that a statement names are ever answered from. It is made after the gates have passed,
by the holder of the release key, and says what was judged, by which gates and limits, and against
which champion; its hash stands in the history's entry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from pipelines.core.files import sha256_json
from pipelines.provenance import keys
from pipelines.registry.outside import (
    LONGEST,
    Name,
    Number,
    Sha256,
    Share,
    Signature,
    Text,
    Time,
)

PREFIX = "prong.statement."
"""Of a version's tags: the first 32 digits of the statement's hash follow."""
MADE_FROM = (
    *("git_commit", "data_hash", "params_hash", "code_hash", "dvc_lock_sha256"),
    *("weights_sha256", "started_from", "drift_sha256"),
)
"""The lineage that a statement repeats."""
_KIND = "statement"
_STRICT = ConfigDict(extra="forbid", strict=True)
_Finite = Annotated[float, Field(allow_inf_nan=False)]


@checked(frozen=True, config=_STRICT)
class Passed:
    """One gate that let the version through.

    Attributes:
        gate: Its name.
        figure: What was measured; None if nothing was.
        limit: What it was held to; None if the gate has none.
    """

    gate: Name
    figure: _Finite | None
    limit: _Finite | None


@checked(frozen=True, config=_STRICT)
class Statement:
    """That a version was let through, and how.

    Attributes:
        model: The registered model's name.
        version: Its number.
        created: When the registry made it, UTC: a number may be used again in a registry that
            was emptied, a time not.
        sha256: Of the ONNX file that was judged.
        size: Its bytes.
        classes: How many it knows; 0 where nothing is classified.
        classes_sha256: Over their names, in order, as JSON.
        gates: All that were asked; every one passed. Empty where a person vouched instead.
        limits: Hash of the section `gates` of the parameters.
        gate_split: Hash over the content hashes of the images that decided.
        held_against: The champion that it was compared with, or None.
        error: Its share of wrong answers on the gate split; None if not scored.
        images: Images of the gate split.
        made_from: Lineage: name → hash, or `unknown`.
        time: UTC, ISO 8601.
        by: user@host.
        run: Prefect's id of the run, or empty.
        format: Of this statement.
        key: Fingerprint of the key.
        signature: Of the statement's hash, in base64.
    """

    model: Name
    version: Number
    created: Time
    sha256: Sha256
    size: Annotated[int, Field(ge=1)]
    classes: Annotated[int, Field(ge=0)]
    classes_sha256: Sha256
    gates: Annotated[tuple[Passed, ...], Field(max_length=40)]
    limits: Sha256
    gate_split: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    held_against: Number | None
    error: Share | None
    images: Annotated[int, Field(ge=0)]
    made_from: Annotated[dict[Name, Annotated[str, Field(max_length=100)]], Field(max_length=10)]
    time: Time
    by: Text
    run: Text
    format: Literal[1] = 1
    key: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    signature: Signature = ""

    @property
    def hash(self) -> str:
        """The sha256 over all but key and signature: signed anew, it stays the same statement."""
        values = _ADAPTER.dump_python(self, mode="json")
        return sha256_json({k: v for k, v in values.items() if k not in ("key", "signature")})

    @property
    def text(self) -> str:
        """The statement as one line of JSON."""
        values = _ADAPTER.dump_python(self, mode="json")
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    def signed(self, private: Path) -> Statement:
        """Return the statement, signed by a private key."""
        key, signature = keys.sign_text(private, _KIND, self.hash)
        values: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return _ADAPTER.validate_json(json.dumps({**values, "key": key, "signature": signature}))


_ADAPTER = TypeAdapter(Statement)


def tag_key(statement_hash: str) -> str:
    """Return the name of the tag that holds the statement of a hash."""
    return PREFIX + statement_hash[:32]


def parsed(text: str) -> Statement | None:
    """Return the statement that a tag holds; None if it holds none."""
    if len(text) > LONGEST:
        return None
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError:
        return None


def find(
    texts: Mapping[str, str], trusted: Sequence[bytes], *, model: str, version: int, wanted: str
) -> Statement | None:
    """Return the statement of a hash, if a trusted key signed it, of this model and version.

    Args:
        texts: Tag → its value: those of the version, or what this checkout remembers.
        trusted: Public keys, as PEM.
        model: The registered model's name.
        version: The version's number.
        wanted: The statement's hash.
    """
    found = parsed(texts.get(tag_key(wanted), ""))
    if found is None or (found.model, found.version, found.hash) != (model, version, wanted):
        return None
    good = keys.is_signed(trusted, _KIND, wanted, found.key, found.signature)
    return found if good else None

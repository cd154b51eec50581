"""MLflow's registry: versions, their aliases and tags, and the champion's file.

A version counts once it is `complete`: uploaded, downloaded again, found equal, READY and tagged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.gates.finding import Finding, from_tags
from pipelines.registry import outside
from pipelines.systems.mlflow import MlflowClient, answering, connect, registered_models
from pipelines.systems.mlflow.registered_models import ModelVersion

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
"""Aliases: live; live before; registered last, and not judged yet or refused."""
SHA256, COMPLETE = "onnx_sha256", "prong.complete"
LINEAGE, METRIC, PARAM = "lineage.", "metric.", "param."
"""Prefixes of a version's tags: made from what, measured, by what settings; gates add `gate.`."""


VARIANT, VARIANT_OF = "variant", "variant_of"
"""Lineage of a variant: its kind; version and sha256 of the champion that it approximates."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model.

    Attributes:
        model: The registered model's name.
        number: Of the version, from 1.
        created: When, UTC.
        status: MLflow's: READY once usable.
        aliases: Such as `champion`, sorted.
        run_id: The training's run, or empty.
        tags: All tags, by name.
    """

    model: str
    number: int
    created: datetime
    status: str
    aliases: tuple[str, ...]
    run_id: str
    tags: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether registration came to its end."""
        return self.status == "READY" and self.tags.get(COMPLETE) == "true"

    @property
    def sha256(self) -> str:
        """Of the ONNX file; empty if the version is not one of this project."""
        return outside.sha256(self.tags.get(SHA256))

    def require_no_variant(self) -> None:
        """Check that the gates of other versions are the ones for it.

        Raises:
            UserError: If it is a variant of a champion.
        """
        if LINEAGE + VARIANT_OF in self.tags:
            raise UserError(
                f"{self.model} version {self.number}: is a variant of a champion, held to gates "
                "of its own: `prong variants` judges it"
            )

    def under(self, prefix: str) -> dict[str, str]:
        """Return the tags under a prefix (`LINEAGE`, `METRIC`, `JUDGED`), without it."""
        return {
            key.removeprefix(prefix): value
            for key, value in sorted(self.tags.items())
            if key.startswith(prefix)
        }

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the gates found; a finding that cannot be read counts as not run."""
        return from_tags(self.tags)

    def as_json(self) -> dict[str, Any]:
        """Return the version as plain JSON values; figures are numbers where they can be."""
        return {
            "model": self.model,
            "version": self.number,
            "created": self.created.isoformat(),
            "complete": self.complete,
            "aliases": list(self.aliases),
            "run_id": self.run_id,
            "onnx_sha256": self.sha256,
            "metrics": {k: number(v) for k, v in self.under(METRIC).items()},
            "gates": {found.gate: found.as_json() for found in self.findings},
            "lineage": self.under(LINEAGE),
        }


def number(text: str) -> float | str:
    """Return a tag's value as a number where it is one that JSON can hold, else as it is."""
    if text.isdecimal() and len(text) < 16:
        return int(text)
    try:
        value = float(text)
    except ValueError:
        return text
    # A hash may read as a number (123e45…), and JSON has neither NaN nor infinity.
    return value if len(text) < 25 and abs(value) < 1e300 else text


def _version(found: ModelVersion, aliases: Mapping[str, int]) -> Version | None:
    number = outside.number(found.version)
    if number is None:
        return None
    return Version(
        model=str(found.name),
        number=number,
        created=_moment(found.creation_timestamp),
        status=str(found.status),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        run_id=str(found.run_id or ""),
        tags={str(key): str(value) for key, value in found.tags.items()},
    )


def _moment(milliseconds: object) -> datetime:
    """Return a moment of the registry's; 1970 where it gives none."""
    try:
        return datetime.fromtimestamp(float(str(milliseconds)) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def aliases(client: MlflowClient, model: str) -> dict[str, int]:
    """Return alias → version; empty if there is no such model."""
    found = registered_models.find_model(client, model)
    return {} if found is None else outside.aliases(found.aliases)[0]


def versions(client: MlflowClient, model: str) -> list[Version]:
    """Return all versions of a model, newest first; none if there is no such model."""
    named = aliases(client, model)
    found = (_version(version, named) for version in registered_models.versions_of(client, model))
    return sorted((v for v in found if v is not None), key=lambda version: -version.number)


def version_or_none(client: MlflowClient, model: str, number: int) -> Version | None:
    """Return one version; None if it does not exist."""
    found = registered_models.find_version(client, model, number)
    return None if found is None else _version(found, aliases(client, model))


def get_version(client: MlflowClient, model: str, number: int) -> Version:
    """Return one version.

    Raises:
        UserError: If it does not exist.
    """
    found = version_or_none(client, model, number)
    if found is None:
        numbers = ", ".join(str(v.number) for v in versions(client, model)) or "none"
        raise UserError(f"{model} version {number}: does not exist; there are: {numbers}")
    return found


def number_of(model: str, named: Mapping[str, int], text: str, *, asked: str) -> int:
    """Return the version that a user names by number or alias.

    Args:
        model: The registered model's name.
        named: Its aliases.
        text: What the user wrote, such as `3`, `v3` or `champion`.
        asked: By which option or argument, for the message.

    Raises:
        UserError: If it is neither a number nor an alias in use.
    """
    plain = text.removeprefix("v")
    if plain.isdecimal() and plain.isascii() and len(plain) < 10:
        return int(plain)
    if text in named:
        return named[text]
    known = ", ".join(sorted(named)) or "none in use"
    raise UserError(f"{asked} {text!r}: allowed: a version of {model} or an alias ({known})")


def find_version(layout: Layout, model: str, text: str) -> Version:
    """Return the version that a user names by number or alias.

    Raises:
        UserError: If there is no such version.
        Unavailable: If the registry does not answer.
    """
    client = connect(layout)
    with answering(layout):
        number = number_of(model, aliases(client, model), text, asked="VERSION")
        return get_version(client, model, number)


def require_model(layout: Layout, model: str) -> None:
    """Check that a model that a person named is there: a slip of the pen is not an empty registry.

    Raises:
        UserError: If it is not; the message names the models that exist.
        Unavailable: If the registry does not answer.
    """
    client = connect(layout)
    with answering(layout):
        if registered_models.find_model(client, model) is None:
            known = ", ".join(registered_models.model_names(client))
            raise UserError(
                f"--model {model!r}: no such model; registered: {known or 'nothing yet'}"
            )


def list_versions(layout: Layout, model: str) -> list[Version]:
    """Return all versions of a model, newest first, at least one.

    Raises:
        UserError: If there are none; the message names the models that exist.
        Unavailable: If the registry does not answer.
    """
    client = connect(layout)
    with answering(layout):
        found = versions(client, model)
        if not found:
            known = ", ".join(registered_models.model_names(client))
            raise UserError(
                f"registry.model: no version of {model!r} is registered; "
                f"registered: {known or 'nothing yet'}; `prong run` registers one"
            )
        return found

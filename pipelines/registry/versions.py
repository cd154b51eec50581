"""MLflow's registry: versions, their aliases and tags, and the champion's file.

A version counts once it is `complete`: uploaded, downloaded again, found equal, READY and tagged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pipelines.systems.mlflow.surroundings  # noqa: F401  # before MLflow is imported

# isort: split
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.files import atomic_path, sha256_file
from pipelines.core.paths import Layout
from pipelines.gates.finding import Finding, from_tags
from pipelines.systems.mlflow import answering, connect, tracking_uri
from pipelines.systems.mlflow.server_leases import PREFIX as LEASE

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
"""Aliases: live; live before; registered last, and not judged yet or refused."""
MODEL_FILE, SIGNATURE = "model.onnx", "model.onnx.sig"
SHA256, COMPLETE = "onnx_sha256", "prong.complete"
LINEAGE, METRIC, PARAM = "lineage.", "metric.", "param."
"""Prefixes of a version's tags: made from what, measured, by what settings; gates add `gate.`."""


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
        return self.tags.get(SHA256, "")

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


def _version(found: ModelVersion, aliases: Mapping[str, int]) -> Version:
    number = int(found.version)
    return Version(
        model=found.name,
        number=number,
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        status=str(found.status),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        run_id=found.run_id or "",
        tags=dict(found.tags),
    )


def aliases(client: MlflowClient, model: str) -> dict[str, int]:
    """Return alias → version; empty if there is no such model."""
    try:
        found = client.get_registered_model(model).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {alias: int(number) for alias, number in found.items()}


def versions(client: MlflowClient, model: str) -> list[Version]:
    """Return all versions of a model, newest first; none if there is no such model."""
    named, found, token = aliases(client, model), [], None
    while True:
        page = client.search_model_versions(f"name = '{model}'", max_results=100, page_token=token)
        found += [_version(version, named) for version in page]
        token = page.token
        if not token:
            return sorted(found, key=lambda version: -version.number)


def get_version(client: MlflowClient, model: str, number: int) -> Version:
    """Return one version.

    Raises:
        UserError: If it does not exist.
    """
    try:
        return _version(client.get_model_version(model, str(number)), aliases(client, model))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        numbers = ", ".join(str(v.number) for v in versions(client, model)) or "none"
        raise UserError(f"{model} version {number}: does not exist; there are: {numbers}") from None


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
            names = sorted(m.name for m in client.search_registered_models())
            known = ", ".join(name for name in names if not name.startswith(LEASE))
            raise UserError(
                f"registry.model: no version of {model!r} is registered; "
                f"registered: {known or 'nothing yet'}; `prong run` registers one"
            )
        return found


def champion_file(layout: Layout, model: str) -> tuple[int, Path]:
    """Return the champion's version and its ONNX file, whose hash was checked.

    Raises:
        UserError: If there is no model, no champion, or its file is not what was registered.
        Unavailable: If the registry does not answer.
    """
    for version in list_versions(layout, model):
        if CHAMPION in version.aliases:
            return version.number, version_file(layout, version)
    raise UserError(
        f"{model}: no version is champion; `prong run` promotes the one it registers "
        "unless a gate blocks it, `prong models` shows the versions"
    )


def cached_file(layout: Layout, sha256: str) -> Path:
    """Return where a downloaded model of this hash lies, or would."""
    return layout.state / "cache" / f"{sha256}.onnx"


def version_file(layout: Layout, version: Version) -> Path:
    """Return a version's ONNX file, downloaded at most once.

    Hash and signature are checked every time, before anything else looks at the file.

    Raises:
        UserError: If the file is absent, or is not the one that was registered.
        Unsigned: If it carries no signature of a trusted key.
        Unavailable: If the registry does not answer.
    """
    path = _registered_file(layout, version)
    signer(layout, version)
    return path


def signer(layout: Layout, version: Version) -> str:
    """Return the fingerprint of the trusted key that signed a version's bytes.

    Raises:
        UserError: If the file is absent, or is not the one that was registered.
        Unsigned: If no trusted key signed just these bytes.
        Unavailable: If the registry does not answer.
    """
    from pipelines.provenance import signing

    path = _registered_file(layout, version)
    bundle = path.with_name(f"{version.sha256}.sig")
    if bundle.is_file():
        with suppress(signing.Unsigned):  # it may have been signed anew since
            return signing.verify(layout, path, bundle)
    name = f"{version.model} version {version.number}"
    try:
        download(layout, location(layout, version), bundle, SIGNATURE)
    except UserError as error:
        if isinstance(error, Unavailable):
            raise
        raise signing.Unsigned(
            f"{name}: not signed; `prong sign {version.number}` signs what is registered"
        ) from None
    try:
        return signing.verify(layout, path, bundle)
    except signing.Unsigned as error:
        raise signing.Unsigned(
            f"{name}: {error}; `prong sign {version.number}` signs what is registered, and "
            f"{signing.VERIFYING_KEY} names other keys to trust"
        ) from None


def _registered_file(layout: Layout, version: Version) -> Path:
    """Return a version's ONNX file; its hash was checked, its signature not."""
    name = f"{version.model} version {version.number}"
    if not version.complete or not version.sha256:
        raise UserError(f"{name}: its registration is not complete; `prong run` mends it")
    path = cached_file(layout, version.sha256)
    if path.is_file() and sha256_file(path) == version.sha256:
        return path
    found = download(layout, location(layout, version), path)
    if found != version.sha256:
        path.unlink()
        raise UserError(
            f"{name}: the registry's file is damaged or was exchanged: sha256 {found}, "
            f"registered {version.sha256}"
        )
    return path


def location(layout: Layout, version: Version) -> str:
    """Return where the files of a version lie.

    Raises:
        Unavailable: If the registry does not answer.
    """
    client = connect(layout)
    with answering(layout):
        return str(client.get_model_version_download_uri(version.model, str(version.number)))


def download(layout: Layout, where: str, path: Path, file: str = MODEL_FILE) -> str:
    """Bring a file of a stored model to `path` (replaced atomically) and return its sha256.

    Args:
        layout: The checkout.
        where: The artifact location of an uploaded model.
        path: Where to.
        file: Which; the ONNX file unless said.

    Raises:
        UserError: If the store has no such file.
        Unavailable: If it does not answer.
    """
    uri = f"{where.rstrip('/')}/{file}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as scratch:
        try:
            with answering(layout):
                got = download_artifacts(
                    artifact_uri=uri, dst_path=scratch, tracking_uri=tracking_uri(layout)
                )
        except OSError as error:
            if not isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
                raise
            raise UserError(f"{uri}: the registry's file is gone") from None
        except MlflowException as error:
            said = " ".join(str(error).split())
            what = "is gone" if "No such artifact" in said else f"cannot be read: {said[:300]}"
            raise UserError(f"{uri}: the registry's file {what}") from None
        with atomic_path(path) as temporary:
            temporary.write_bytes(Path(got).read_bytes())
    return sha256_file(path)


def put_beside(layout: Layout, version: Version, file: Path) -> None:
    """Put a file into a version's folder, in the place of one of the same name.

    Raises:
        Unavailable: If the registry does not answer.
    """
    cached = cached_file(layout, version.sha256).with_suffix(".sig")
    with answering(layout):
        where = location(layout, version)
        repository = get_artifact_repository(where, tracking_uri=tracking_uri(layout))
        repository.log_artifact(str(file))  # type: ignore[no-untyped-call]
    cached.unlink(missing_ok=True)

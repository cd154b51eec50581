"""The files of registered versions: fetched and checked, and put beside them.

A released file is the one whose hash its signed statement names. Tags say what was registered;
that is what the gates go by, and nothing is answered from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.provenance.attachments import DRIFT
from pipelines.registry.last_seen import cached_drift as cached_drift  # parts of this module
from pipelines.registry.last_seen import cached_file as cached_file
from pipelines.registry.last_seen import drift_sha256 as drift_sha256
from pipelines.registry.state import ModelState, read_state, statement_of, unsigned
from pipelines.registry.statements import Statement
from pipelines.registry.versions import Version, list_versions, version_or_none
from pipelines.systems.mlflow import MlflowClient, answering, artifacts, connect, registered_models

MODEL_FILE, SIGNATURE, STATEMENT = "model.onnx", "model.onnx.sig", "statement.json"


class NotReleased(UserError):
    """No signed statement lets a version be answered from."""


@dataclass(frozen=True)
class ReleasedVersion:
    """The champion: what may be answered from.

    Attributes:
        version: Its number.
        path: Its ONNX file, whose hash is the statement's.
        statement: By which it was released.
        warnings: What is wrong with the registry, though this version may be answered from.
    """

    version: int
    path: Path
    statement: Statement
    warnings: tuple[str, ...]


def champion_file(layout: Layout, model: str) -> tuple[int, Path]:
    """Return the champion's version and its ONNX file; see `champion`."""
    found = champion(layout, model)
    return found.version, found.path


def champion(layout: Layout, model: str) -> ReleasedVersion:
    """Return the version that the history's last entry names, after statement and bytes held.

    What an alias says is not obeyed; if it says otherwise that is among the warnings.

    Raises:
        UserError: If there is no model, no champion, or its file is not what was released.
        NotReleased: If no trusted key signed the history or the statement.
        Unavailable: If the registry does not answer.
    """
    client = connect(layout)
    with answering(layout):
        state = read_state(layout, client, model)
        if state.live is None:
            raise none_live(layout, state)
        statement = required_statement(layout, client, state, state.live)
    path = released_file(layout, statement)
    return ReleasedVersion(state.live, path, statement, warnings(state))


def warnings(state: ModelState) -> tuple[str, ...]:
    """Return what is wrong with a model's record though its champion may be answered from."""
    found = [f"the history was tampered with: {said}" for said in state.history.damage]
    found += [state.bad_intent] if state.bad_intent else []
    if not state.agrees:
        found.append("an alias says otherwise than the history, and is not obeyed")
    return tuple(f"{said}; `prong repair` mends it" for said in found)


def none_live(layout: Layout, state: ModelState) -> UserError:
    """Return why nothing is answered from, and what helps.

    Raises:
        UserError: If there is no version at all.
        Unavailable: If the registry does not answer.
    """
    model = state.model
    if state.unsigned:
        return NotReleased(unsigned(state))
    if state.history.damage:
        said = "; ".join(state.history.damage)
        return NotReleased(
            f"{model}: its history cannot be relied on: {said}; `prong repair` mends what can be "
            "mended, and PRONG_VERIFYING_KEY names other keys to trust"
        )
    list_versions(layout, model)  # says so where there is no version at all
    return UserError(
        f"{model}: no version is champion; `prong run` promotes the one it registers "
        "unless a gate blocks it, `prong models` shows the versions"
    )


def required_statement(
    layout: Layout, client: MlflowClient, state: ModelState, number: int
) -> Statement:
    """Return the statement by which a version was released.

    Raises:
        NotReleased: If there is none that holds.
    """
    version = version_or_none(client, state.model, number)
    tags = {} if version is None else version.tags
    found = statement_of(layout, state, number, tags)
    if found is None:
        raise NotReleased(
            f"{state.model} version {number}: no signed statement says that the gates let it "
            f"through; `prong promote {number}` puts it before them"
        )
    return found


def signer(layout: Layout, version: Version) -> str:
    """Return the fingerprint of the key that let a version through; empty if none did.

    Raises:
        UserError: If a key cannot be used.
        Unavailable: If the registry does not answer.
    """
    client = connect(layout)
    with answering(layout):
        state = read_state(layout, client, version.model)
    found = statement_of(layout, state, version.number, version.tags)
    return found.key if found is not None and found.sha256 == version.sha256 else ""


def released_sha256(layout: Layout, model: str, number: int) -> str:
    """Return the hash of a version's file by its statement; empty if no statement releases it.

    Raises:
        UserError: If a key cannot be used.
        Unavailable: If the registry does not answer.
    """
    client = connect(layout)
    with answering(layout):
        state = read_state(layout, client, model)
        try:
            return required_statement(layout, client, state, number).sha256
        except NotReleased:
            return ""


def released_file(layout: Layout, statement: Statement) -> Path:
    """Return the ONNX file that a statement names, downloaded at most once; its hash was checked.

    Raises:
        UserError: If the registry's file is gone or another one.
        Unavailable: If the registry does not answer.
    """
    return _checked(
        layout, statement.model, statement.version, statement.sha256, "released, by its statement,"
    )


def drift_file(layout: Layout, released: ReleasedVersion | Statement) -> Path | None:
    """Return the drift graph that was released with a version, downloaded at most once.

    Its hash is that of the signed statement, and was checked.

    Args:
        layout: The checkout.
        released: The version, or its statement.

    Returns:
        None if the version has none: it was made before there were any, or none could be made.

    Raises:
        UserError: If the registry's file is gone or another one.
        Unavailable: If the registry does not answer.
    """
    statement = released if isinstance(released, Statement) else released.statement
    sha256 = drift_sha256(statement)
    if not sha256:
        return None
    path = cached_drift(layout, sha256)
    if path.is_file() and sha256_file(path) == sha256:
        return path
    where = _where(layout, statement.model, statement.version)
    found = artifacts.download(layout, where, DRIFT, path)
    if found != sha256:
        path.unlink()
        raise UserError(
            f"{statement.model} version {statement.version}: the registry's drift graph is damaged "
            f"or was exchanged: sha256 {found}, released {sha256}; `prong repair` puts back what "
            "is still here"
        )
    return path


def version_file(layout: Layout, version: Version) -> Path:
    """Return the ONNX file that was registered, downloaded at most once; its hash was checked.

    It may be one that no gate let through: answer from `released_file`.

    Raises:
        UserError: If the file is absent, or is not the one that was registered.
        Unavailable: If the registry does not answer.
    """
    if not version.complete or not version.sha256:
        raise UserError(
            f"{version.model} version {version.number}: its registration is not complete; "
            "`prong run` mends it"
        )
    return _checked(layout, version.model, version.number, version.sha256, "registered")


def _checked(layout: Layout, model: str, number: int, sha256: str, said: str) -> Path:
    path = cached_file(layout, sha256)
    if path.is_file() and sha256_file(path) == sha256:
        return path
    found = artifacts.download(layout, _where(layout, model, number), MODEL_FILE, path)
    if found != sha256:
        path.unlink()
        raise UserError(
            f"{model} version {number}: the registry's file is damaged or was exchanged: sha256 "
            f"{found}, {said} {sha256}; `prong repair` puts back what is still here, "
            "`prong rollback` answers from the version before"
        )
    return path


def location(layout: Layout, version: Version) -> str:
    """Return where the files of a version lie.

    Raises:
        UserError: If the registry has no such version.
        Unavailable: If the registry does not answer.
    """
    return _where(layout, version.model, version.number)


def _where(layout: Layout, model: str, number: int) -> str:
    client = connect(layout)
    with answering(layout):
        if registered_models.find_version(client, model, number) is None:
            raise UserError(f"{model} version {number}: is gone from the registry")
        return registered_models.location(client, model, number)


def put_beside(layout: Layout, version: Version, file: Path) -> None:
    """Put a file into a version's folder, in the place of one of the same name.

    Raises:
        Unavailable: If the registry does not answer.
    """
    artifacts.put(layout, location(layout, version), file)

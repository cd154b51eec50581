"""The files of registered versions: fetched, checked, signed, and put beside them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.registry.versions import CHAMPION, Version, list_versions, named_version
from pipelines.systems.mlflow import answering, artifacts, connect, registered_models

MODEL_FILE, SIGNATURE = "model.onnx", "model.onnx.sig"


def champion_file(layout: Layout, model: str) -> tuple[int, Path]:
    """Return the champion's version and its ONNX file, whose hash was checked.

    Raises:
        UserError: If there is no model, no champion, or its file is not what was registered.
        Unavailable: If the registry does not answer.
    """
    client = connect(layout)
    with answering(layout):
        version = named_version(client, model, CHAMPION)
    if version is not None:
        return version.number, version_file(layout, version)
    list_versions(layout, model)  # says so where there is no version at all
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
    _signer(layout, version, path)
    return path


def signer(layout: Layout, version: Version) -> str:
    """Return the fingerprint of the trusted key that signed a version's bytes.

    Raises:
        UserError: If the file is absent, or is not the one that was registered.
        Unsigned: If no trusted key signed just these bytes.
        Unavailable: If the registry does not answer.
    """
    return _signer(layout, version, _registered_file(layout, version))


def _signer(layout: Layout, version: Version, path: Path) -> str:
    """Return who signed the file of a version; its hash was checked."""
    from pipelines.provenance import signing

    bundle = path.with_name(f"{version.sha256}.sig")
    if bundle.is_file():
        with suppress(signing.Unsigned):  # it may have been signed anew since
            return signing.verify(layout, path, bundle)
    name = f"{version.model} version {version.number}"
    try:
        artifacts.download(layout, location(layout, version), SIGNATURE, bundle)
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
    found = artifacts.download(layout, location(layout, version), MODEL_FILE, path)
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
        return registered_models.location(client, version.model, version.number)


def put_beside(layout: Layout, version: Version, file: Path) -> None:
    """Put a file into a version's folder, in the place of one of the same name.

    Raises:
        Unavailable: If the registry does not answer.
    """
    cached = cached_file(layout, version.sha256).with_suffix(".sig")
    artifacts.put(layout, location(layout, version), file)
    cached.unlink(missing_ok=True)

"""The files of registered versions: fetched, checked, signed, and put beside them."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import pipelines.systems.mlflow.surroundings  # noqa: F401  # before MLflow is imported

# isort: split
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.files import atomic_path, sha256_file
from pipelines.core.paths import Layout
from pipelines.registry.versions import CHAMPION, Version, list_versions, named_version
from pipelines.systems.mlflow import answering, connect, tracking_uri

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

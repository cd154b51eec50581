"""Stored files, by the artifact location of a version or an upload: listed, fetched, removed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path, sha256_file
from pipelines.core.paths import Layout
from pipelines.systems.mlflow.address import answering, tracking_uri

__all__ = ["FileInfo", "download", "entries", "fetch", "put", "read_text", "remove", "size"]


def _files(store: ArtifactRepository, folder: str | None = None) -> Iterator[tuple[str, int]]:
    for found in store.list_artifacts(folder):
        if found.is_dir:
            yield from _files(store, found.path)
        else:
            yield found.path, int(found.file_size or 0)


def size(layout: Layout, where: str) -> int:
    """Return the bytes of all files at an artifact location; 0 if there are none."""
    return sum(count for _, count in _files(get_artifact_repository(where, tracking_uri(layout))))


def read_text(layout: Layout, where: str, name: str) -> str | None:
    """Return a text file at an artifact location, or None if there is none of that name."""
    store = get_artifact_repository(where, tracking_uri(layout))
    if name not in {path for path, _ in _files(store)}:
        return None
    with tempfile.TemporaryDirectory(prefix="prong-") as folder:
        return fetch(layout, where, name, Path(folder)).read_text(encoding="utf-8")


def remove(layout: Layout, where: str) -> None:
    """Remove all files at an artifact location; it may be empty."""
    store = get_artifact_repository(where, tracking_uri(layout))
    if next(_files(store), None) is not None:
        store.delete_artifacts()  # type: ignore[no-untyped-call]


def put(layout: Layout, where: str, file: Path) -> None:
    """Put a file at an artifact location, in the place of one of the same name.

    Raises:
        Unavailable: If the store does not answer.
    """
    with answering(layout):
        store = get_artifact_repository(where, tracking_uri(layout))
        store.log_artifact(str(file))  # type: ignore[no-untyped-call]


def entries(layout: Layout, where: str, folder: str = "") -> list[FileInfo]:
    """Return what lies in a folder, as the store names it, without what lies in folders below.

    Args:
        layout: The checkout.
        where: An artifact location.
        folder: In it; the whole if empty.

    Raises:
        UserError: If it cannot be listed.
        Unavailable: If the store does not answer.
    """
    at = f"{where.rstrip('/')}/{folder}".rstrip("/")
    try:
        with answering(layout):
            return list_artifacts(artifact_uri=at, tracking_uri=tracking_uri(layout))
    except MlflowException as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{where}: the registry's folder cannot be read: {said}") from None


def fetch(layout: Layout, where: str, name: str, folder: Path) -> Path:
    """Bring a file into a folder and return its path there.

    Args:
        layout: The checkout.
        where: An artifact location.
        name: Of the file, with the folders it lies in.
        folder: Where to; it exists.

    Raises:
        UserError: If the store has no such file, or cannot read it.
        Unavailable: If it does not answer.
    """
    uri = f"{where.rstrip('/')}/{name}"
    try:
        with answering(layout):
            return Path(
                download_artifacts(
                    artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking_uri(layout)
                )
            )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"{uri}: the registry's file is gone") from None
    except MlflowException as error:
        said = " ".join(str(error).split())
        what = "is gone" if "No such artifact" in said else f"cannot be read: {said[:300]}"
        raise UserError(f"{uri}: the registry's file {what}") from None


def download(layout: Layout, where: str, name: str, path: Path) -> str:
    """Bring a file to `path` (replaced atomically) and return its sha256.

    Args:
        layout: The checkout.
        where: An artifact location.
        name: Of the file, with the folders it lies in.
        path: Where to; the folder is made if absent.

    Raises:
        UserError: If the store has no such file, or cannot read it.
        Unavailable: If it does not answer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as scratch:
        got = fetch(layout, where, name, Path(scratch))
        with atomic_path(path) as temporary:
            temporary.write_bytes(got.read_bytes())
    return sha256_file(path)

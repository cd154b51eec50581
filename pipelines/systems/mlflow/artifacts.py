"""Stored files, by the artifact location of a version or an upload: listed, fetched, removed."""

from __future__ import annotations

import errno
import os
import shutil
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
from pipelines.systems.mlflow.address import (
    ROOT_SETTING,
    answering,
    artifact_root,
    tracking_uri,
)
from pipelines.systems.mlflow.locations import (
    canonical,
    is_own,
    is_removable,
    lies_in,
    local_path,
    resolved,
)

__all__ = [
    "FileInfo",
    "canonical",
    "check_own",
    "download",
    "entries",
    "fetch",
    "is_removable",
    "lies_in",
    "put",
    "read_text",
    "remove",
    "resolved",
    "size",
]


def _files(store: ArtifactRepository, folder: str | None = None) -> Iterator[tuple[str, int]]:
    for found in store.list_artifacts(folder):
        if found.is_dir:
            yield from _files(store, found.path)
        else:
            yield found.path, int(found.file_size or 0)


def _store(layout: Layout, where: str) -> ArtifactRepository:
    return get_artifact_repository(resolved(layout, where), tracking_uri(layout))


def size(layout: Layout, where: str) -> int:
    """Return the bytes of all files at an artifact location; 0 if there are none."""
    return sum(count for _, count in _files(_store(layout, where)))


def read_text(layout: Layout, where: str, name: str) -> str | None:
    """Return a text file at an artifact location, or None if there is none of that name."""
    if name not in {path for path, _ in _files(_store(layout, where))}:
        return None
    with tempfile.TemporaryDirectory(prefix="prong-") as folder:
        return fetch(layout, where, name, Path(folder)).read_text("utf-8", errors="replace")


def remove(layout: Layout, where: str) -> None:
    """Remove all files of an upload; there may be none.

    Raises:
        UserError: If it is not an upload's folder of this project: nothing else is removed.
        Unavailable: If the store does not answer.
    """
    if not is_removable(layout, where):
        raise UserError(f"{where}: not an upload's folder of this project; left alone")
    path = local_path(resolved(layout, where))
    if path is not None:  # MLflow would read a % in the folder's name as an escape, twice
        if path.exists():
            shutil.rmtree(path)
        return
    with answering(layout):
        store = _store(layout, where)
        if next(_files(store), None) is not None:
            store.delete_artifacts()  # type: ignore[no-untyped-call]


def check_own(layout: Layout, where: str) -> None:
    """Make sure that this project may write at an artifact location.

    Raises:
        UserError: If it may not.
    """
    if not is_own(layout, where):
        raise UserError(
            f"{where}: outside this project's artifacts ({artifact_root(layout)}); nothing is "
            f"written there; {ROOT_SETTING} names another place for them"
        )


def put(layout: Layout, where: str, file: Path) -> None:
    """Put a file at an artifact location, in the place of one of the same name.

    Raises:
        UserError: If the location is not one of this project.
        Unavailable: If the store does not answer.
    """
    check_own(layout, where)
    with answering(layout):
        _store(layout, where).log_artifact(str(file))  # type: ignore[no-untyped-call]


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
    at = f"{resolved(layout, where).rstrip('/')}/{folder}".rstrip("/")
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
        OSError: If the disk here is full.
    """
    uri = f"{resolved(layout, where).rstrip('/')}/{name}"
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
        for full in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(full) in said:  # says nothing about the store's file
                raise OSError(full, os.strerror(full), str(folder)) from None
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

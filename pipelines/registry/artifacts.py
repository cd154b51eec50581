"""The stored files of versions and uploads: their size, one of them as text, their removal."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pipelines.systems.mlflow.surroundings  # noqa: F401  # before MLflow is imported

# isort: split
from mlflow.artifacts import download_artifacts
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipelines.core.paths import Layout
from pipelines.systems.mlflow import tracking_uri


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
        uri = f"{where.rstrip('/')}/{name}"
        got = download_artifacts(
            artifact_uri=uri, dst_path=folder, tracking_uri=tracking_uri(layout)
        )
        return Path(got).read_text(encoding="utf-8")


def remove(layout: Layout, where: str) -> None:
    """Remove all files at an artifact location; it may be empty."""
    store = get_artifact_repository(where, tracking_uri(layout))
    if next(_files(store), None) is not None:
        store.delete_artifacts()  # type: ignore[no-untyped-call]

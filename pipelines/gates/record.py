"""A version's folder and the findings on it, in the registry."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pipelines.tracking.surroundings  # noqa: F401  # before MLflow is imported

# isort: split
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.exceptions import MlflowException

from pipelines import registry
from pipelines.errors import UserError
from pipelines.gates.finding import PREFIX, Finding, tags
from pipelines.gates.provenance import MODEL_FILES, StoredFile, is_inside
from pipelines.layout import Layout
from pipelines.tracking import WEIGHTS_TAG, answering, connect, tracking_uri

_HEAD = 64  # bytes
_MOST = 1000  # files


def write(client: MlflowClient, version: registry.Version, findings: Iterable[Finding]) -> None:
    """Write findings onto a version, one tag each; those of gates that are no more go.

    The gate `champion` also leaves its figures where other metrics are: `metric.gate_error`,
    `metric.champion_error`, `metric.gate_images`.
    """
    number, new = str(version.number), tags(findings)
    metrics = {}
    for finding in findings:
        if finding.gate == "champion":
            names = {"error": "gate_error", "images": "gate_images"}
            figures = finding.figures.items()
            metrics = {registry.METRIC + names.get(key, key): f"{v:.12g}" for key, v in figures}
    for key in sorted(version.tags):
        if key.startswith(PREFIX) and key not in new:
            client.delete_model_version_tag(version.model, number, key)
    for key, value in {**metrics, **new}.items():
        client.set_model_version_tag(version.model, number, key, value)


def weights_of(layout: Layout, version: registry.Version) -> str:
    """Return the sha256 of the trained weights behind a version; empty if its run does not say."""
    if not version.run_id:
        return ""
    try:
        with answering(layout):
            run = connect(layout).get_run(version.run_id)
    except MlflowException:
        return ""  # the run was deleted; the version lives on
    return str(run.data.tags.get(WEIGHTS_TAG, ""))


def stored_files(layout: Layout, version: registry.Version, scratch: Path) -> list[StoredFile]:
    """Return what lies in a version's folder; nothing is read whose name leads out of it.

    Args:
        layout: The checkout.
        version: The version.
        scratch: An empty directory for what must be downloaded.

    Raises:
        UserError: If the folder cannot be listed or read.
        Unavailable: If the registry does not answer.
    """
    where = registry.location(layout, version)
    uri = tracking_uri(layout)
    found: list[str] = []
    folders = [""]
    try:
        with answering(layout):
            while folders and len(found) <= _MOST:
                inside = folders.pop()
                at = f"{where.rstrip('/')}/{inside}".rstrip("/")
                for entry in list_artifacts(artifact_uri=at, tracking_uri=uri):
                    # Named from the folder asked for, or with its parent's name: the last part is.
                    path = f"{inside}/{entry.path.rpartition('/')[2]}".lstrip("/")
                    path = path if is_inside(entry.path) else entry.path
                    trusted = is_inside(path)
                    (folders if entry.is_dir and trusted else found).append(path)
            if len(found) > _MOST:
                raise UserError(f"{where}: more than {_MOST} files")
            return [_stored(where, path, uri, scratch) for path in sorted(found)]
    except MlflowException as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{where}: the registry's folder cannot be read: {said}") from None


def _stored(where: str, path: str, uri: str, scratch: Path) -> StoredFile:
    if path.endswith(MODEL_FILES) or not is_inside(path):
        return StoredFile(path, b"")
    got = download_artifacts(
        artifact_uri=f"{where.rstrip('/')}/{path}", dst_path=str(scratch), tracking_uri=uri
    )
    with Path(got).open("rb") as file:
        return StoredFile(path, file.read(_HEAD))

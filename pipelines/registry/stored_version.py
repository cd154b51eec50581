"""A version as the gates see it: its tags, and its folder in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.gates.provenance import MODEL_FILES, StoredFile, is_inside
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.registry.statements import Statement
from pipelines.systems.mlflow import WEIGHTS_TAG, answering, artifacts, connect, read_run

_HEAD = 64  # bytes
_MOST = 1000  # files


@dataclass(frozen=True)
class StoredVersion:
    """A version of the registry; see `pipelines.gates.evidence.StoredModel`.

    Attributes:
        layout: The checkout that asks.
        version: Which one.
        statement: By which it was released: then its file is the one that this names.
    """

    layout: Layout
    version: registry.Version
    statement: Statement | None = None

    @property
    def number(self) -> int:
        """Its number."""
        return self.version.number

    @property
    def sha256(self) -> str:
        """Of the bytes that were released, or else registered."""
        return self.version.sha256 if self.statement is None else self.statement.sha256

    @property
    def lineage(self) -> Mapping[str, str]:
        """What it was made from."""
        return self.version.under(registry.LINEAGE)

    @property
    def metrics(self) -> Mapping[str, str]:
        """Figures that were registered with it."""
        return self.version.under(registry.METRIC)

    def fetch_model(self, target: Path) -> None:
        """Download its ONNX file anew; nothing is checked."""
        where = version_files.location(self.layout, self.version)
        artifacts.download(self.layout, where, version_files.MODEL_FILE, target)

    def checked_file(self) -> Path:
        """Return its ONNX file, downloaded at most once, after its hash was checked."""
        if self.statement is not None:
            return version_files.released_file(self.layout, self.statement)
        return version_files.version_file(self.layout, self.version)

    def files(self, scratch: Path) -> list[StoredFile]:
        """Return what lies in its folder, with `scratch`, an empty directory, for downloads."""
        return _stored_files(self.layout, self.version, scratch)

    def weights_sha256(self) -> str:
        """Return the sha256 of the trained weights behind it; empty if its run does not say."""
        return _weights_of(self.layout, self.version)


def _weights_of(layout: Layout, version: registry.Version) -> str:
    """Return the sha256 of the trained weights behind a version; empty if its run does not say."""
    if not version.run_id:
        return ""
    client = connect(layout)
    with answering(layout):
        run = read_run(client, version.run_id)
    return "" if run is None else run.tags.get(WEIGHTS_TAG, "")  # a run may be deleted


def _stored_files(layout: Layout, version: registry.Version, scratch: Path) -> list[StoredFile]:
    """Return what lies in a version's folder; nothing is read whose name leads out of it.

    Args:
        layout: The checkout.
        version: The version.
        scratch: An empty directory for what must be downloaded.

    Raises:
        UserError: If the folder cannot be listed or read.
        Unavailable: If the registry does not answer.
    """
    where = version_files.location(layout, version)
    found: list[str] = []
    folders = [""]
    while folders and len(found) <= _MOST:
        inside = folders.pop()
        for entry in artifacts.entries(layout, where, inside):
            # Named from the folder asked for, or with its parent's name: the last part is.
            path = f"{inside}/{entry.path.rpartition('/')[2]}".lstrip("/")
            path = path if is_inside(entry.path) else entry.path
            trusted = is_inside(path)
            (folders if entry.is_dir and trusted else found).append(path)
    if len(found) > _MOST:
        raise UserError(f"{where}: more than {_MOST} files")
    return [_stored(layout, where, path, scratch) for path in sorted(found)]


def _stored(layout: Layout, where: str, path: str, scratch: Path) -> StoredFile:
    if path.endswith(MODEL_FILES) or not is_inside(path):
        return StoredFile(path, b"")
    with artifacts.fetch(layout, where, path, scratch).open("rb") as file:
        return StoredFile(path, file.read(_HEAD))

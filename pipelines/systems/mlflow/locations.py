"""Where stored files lie: addresses compared, and followed to where a checkout was moved or copied.

MLflow keeps absolute addresses. In a checkout that was moved they lead nowhere; in a copy they lead
into the original. So whatever the checkout's own store keeps is looked for under its present
artifact root, and nothing else is ever written or removed on this machine.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.systems.mlflow.address import (
    ROOT_SETTING,
    SERVERS,
    artifact_root,
    is_read_only,
    scheme,
    sqlite_file,
    tracking_uri,
)

_ID = "[0-9a-f]{32}"
_PLACE = re.compile(
    rf"(?P<root>/.*/artifacts)/(?P<rest>(?:[0-9]+/)?(?:models/m-{_ID}|{_ID})/artifacts(?:/.*)?)"
)
"""A folder of a run or an upload, under an artifact root of this project."""
_UPLOAD = re.compile(rf".*/models/m-{_ID}/artifacts")
_EXPERIMENT = re.compile(r"(?P<root>.*/artifacts)(?:/[0-9]+)?/?")
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's tables keep addresses."""
_log = logging.getLogger(__name__)


def local_path(where: str) -> Path | None:
    """Return the path that MLflow takes an address for, or None if it is not on this machine.

    Raises:
        UserError: If it is not an address.
    """
    parts = _split(where)
    if parts.scheme not in ("", "file"):
        return None
    named = parts.path if where.startswith("file:") else where  # as MLflow does, host or not
    return Path(os.path.abspath(unquote(named)))


def _split(where: str) -> SplitResult:
    try:
        if "\0" not in unquote(where):
            return urlsplit(where)
    except ValueError:
        pass  # named below, as a zero byte is
    raise UserError(f"artifact location {where!r}: not an address")


def present_root(layout: Layout) -> Path | None:
    """Return the artifact root beside a sqlite store; None where a setting or server names it."""
    file = sqlite_file(tracking_uri(layout))
    return file.parent / "artifacts" if file and not os.environ.get(ROOT_SETTING) else None


def resolved(layout: Layout, where: str) -> str:
    """Return where the files of an artifact location lie now.

    Only an address under the artifact root of a checkout that is gone, or is another one, leads to
    another place than it says: to the same place under the present root, and never out of it.

    Raises:
        UserError: If it is not an address.
    """
    path, root = local_path(where), present_root(layout)
    if path is None or root is None:
        return where
    found = _followed(path, root)
    return where if found == path else found.as_uri()


def _followed(path: Path, root: Path) -> Path:
    place = _PLACE.fullmatch(path.as_posix())
    if place is None or _inside(path, root):
        return path
    moved = root / place["rest"]
    if not _inside(moved, root):
        return path
    # What is here is preferred: whoever changes the original must not change what a copy answers.
    return moved if os.path.lexists(moved) or _is_gone(Path(place["root"]), root) else path


def _is_gone(old: Path, root: Path) -> bool:
    """Say whether an artifact root is absent, or belongs to another checkout."""
    if old.parent == root.parent:
        return False
    foreign = old.parent.name == ".prong" or os.path.lexists(old.parent / "mlflow.db")
    return foreign or not os.path.lexists(old)


def _inside(path: Path, root: Path) -> bool:
    """Say whether a path lies in a folder, links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def is_own(layout: Layout, where: str) -> bool:
    """Say whether this project may write at an artifact location.

    On this machine: inside its artifact root only. Elsewhere: inside the root that
    `MLFLOW_DEFAULT_ARTIFACT_ROOT` names, if it names one.

    Raises:
        UserError: If it is not an address.
    """
    root = artifact_root(layout)
    path, folder = local_path(resolved(layout, where)), local_path(root)
    if path is not None:
        return folder is not None and _inside(path, folder)
    served = scheme(tracking_uri(layout)) in (*SERVERS, "databricks")
    return served or folder is not None or lies_in(canonical(where), canonical(root))


def is_removable(layout: Layout, where: str) -> bool:
    """Say whether an artifact location is an upload's folder of this project."""
    return bool(_UPLOAD.fullmatch(canonical(resolved(layout, where)))) and is_own(layout, where)


def canonical(where: str) -> str:
    """Return one form for all addresses of a place: for comparing, not for opening.

    Trailing slashes, `file:` with one or three slashes or none, links, and a server's proxy
    addresses make no difference.

    Raises:
        UserError: If it is not an address.
    """
    path = local_path(where)
    if path is not None:
        return os.path.realpath(path)
    kind, _, rest = where.partition(":")
    kind, rest = kind.lower(), re.sub("/+", "/", rest)
    if found := re.fullmatch(r"/.*?/mlflow-artifacts/artifacts(/.*)", rest):
        return "mlflow-artifacts:" + os.path.normpath(unquote(found[1]))
    if kind == "mlflow-artifacts":
        named = _split(where).path
        return "mlflow-artifacts:" + os.path.normpath("/" + unquote(named).lstrip("/"))
    return re.sub(r"^s3[an]$", "s3", kind) + ":" + rest.rstrip("/")


def lies_in(place: str, folder: str) -> bool:
    """Say whether a place is a folder or lies in it, both in their canonical form."""
    return place == folder or place.startswith(folder.rstrip("/") + "/")


def follow_move(layout: Layout) -> int:
    """Let MLflow's tables name the present place of a checkout that was moved or copied.

    Done before anything is written, so that new runs and uploads go where the checkout is now, and
    MLflow's pages find the old ones. Reading needs it not: see `resolved`.

    Returns:
        How many addresses were written anew; 0 also where the database takes none now.
    """
    root, uri = present_root(layout), tracking_uri(layout)
    file = sqlite_file(uri)
    if root is None or file is None or is_read_only(uri) or not file.exists():
        return 0
    try:
        with closing(sqlite3.connect(file, timeout=20, isolation_level=None)) as connection:
            old = list(_old_roots(connection, root))
            if not old:
                return 0
            connection.execute("BEGIN IMMEDIATE")
            count = sum(_readdress(connection, text, root) for text in old)
            connection.execute("COMMIT")
            return count
    except sqlite3.Error as error:  # what writes next meets it too, and says so
        _log.debug("MLflow's addresses stay as they are: %s", error)
        return 0


def _old_roots(connection: sqlite3.Connection, root: Path) -> Iterator[str]:
    """Yield the artifact roots, as the tables write them, that are gone or another checkout's."""
    found = set()
    for (where,) in connection.execute("SELECT artifact_location FROM experiments"):
        match = _EXPERIMENT.fullmatch(where) if isinstance(where, str) else None
        if match is None or match["root"] in found:
            continue
        path = local_path(match["root"])
        if path is not None and not _inside(path, root) and _is_gone(path, root):
            found.add(match["root"])
            yield match["root"]


def _readdress(connection: sqlite3.Connection, old: str, root: Path) -> int:
    new = root.as_uri() if old.startswith("file:") else str(root)
    count = 0
    for table, column in _COLUMNS:
        said = connection.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        )
        count += said.rowcount
    return count

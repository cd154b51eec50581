"""Where MLflow's store is, and what its errors mean to a user."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
import sqlalchemy
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.systems.tracking_address import (
    DATABASES,
    SERVERS,
    SETTING,
    scheme,
    shown_uri,
    tracking_uri,
)

__all__ = [
    "DATABASES",
    "ROOT_SETTING",
    "SERVERS",
    "SETTING",
    "answering",
    "artifact_root",
    "broken",
    "is_read_only",
    "reason",
    "scheme",
    "shown_uri",
    "sqlite_file",
    "tracking_uri",
]


ROOT_SETTING = "MLFLOW_DEFAULT_ARTIFACT_ROOT"
_YES = ("true", "1", "yes", "on")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite store, else None.

    Both forms that SQLAlchemy takes are understood: `sqlite:///path`, and sqlite's own
    `sqlite:///file:path?mode=ro&uri=true`.
    """
    if scheme(uri) != "sqlite":
        return None
    try:
        url = sqlalchemy.make_url(uri)
    except sqlalchemy.exc.ArgumentError:
        return None
    database = url.database or ""
    if not database or database == ":memory:" or url.query.get("mode") == "memory":
        return None
    if not database.startswith("file:"):
        return Path(database).absolute()
    if not _as_uri(url):  # sqlite takes it for a name
        return Path(database).absolute()
    path = unquote(urlsplit(database).path)
    return None if path in ("", ":memory:") else Path(path).absolute()


def is_read_only(uri: str) -> bool:
    """Say whether the address of a sqlite store asks that nothing is written."""
    if scheme(uri) != "sqlite":
        return False
    url = sqlalchemy.make_url(uri)
    return _as_uri(url) and (url.query.get("mode") == "ro" or url.query.get("immutable") in _YES)


def _as_uri(url: sqlalchemy.URL) -> bool:
    return (url.database or "").startswith("file:") and url.query.get("uri") in _YES


def artifact_root(layout: Layout) -> str:
    """Return where the artifacts of a store without a server go: beside its file if it has one."""
    if root := os.environ.get(ROOT_SETTING):
        return root
    file = sqlite_file(tracking_uri(layout))
    return ((file.parent if file else layout.state) / "artifacts").as_uri()


@contextmanager
def answering(layout: Layout) -> Iterator[None]:
    """Turn what MLflow raises when its store is at fault into a message for the user.

    Raises:
        UserError: If the store is damaged, full, read-only, outdated, or refuses access.
        Unavailable: If the store does not answer.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
        explained = _explain(error, tracking_uri(layout))
        if explained is None:
            raise
        raise explained from error


def broken(uri: str, reason: str) -> UserError:
    """Return the error that a database cannot be used, and what helps."""
    return UserError(
        f"MLflow's database {shown_uri(uri)} cannot be used: {reason}; "
        f"free space, mend or move it, or set {SETTING} to another"
    )


def reason(text: str) -> str:
    """Return the heart of a network library's nested message."""
    for heart in ("Connection refused", "timed out", "Name or service not known"):
        if heart in text:
            return heart.lower()
    return text[:300]


def _explain(error: Exception, uri: str) -> UserError | None:
    text = " ".join(str(error).split())
    code = getattr(error, "error_code", "")
    silent = Unavailable(
        f"MLflow does not answer at {shown_uri(uri)}: {reason(text)}; start it, or set {SETTING} "
        "to another address (unset: a database in the checkout)"
    )
    if found := re.search(r"\(sqlite3\.\w+\) (.*?)(?: \[SQL|$)", text):
        return silent if "locked" in found[1] else broken(uri, found[1])
    if "out-of-date database schema" in text:
        return UserError(f"MLflow's database {shown_uri(uri)}: {text}")
    if scheme(uri) in SERVERS:
        refused = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}
        if code in refused or re.search(r"error code 40[13]\b", text):
            return UserError(
                f"MLflow at {shown_uri(uri)} refused access: {text[:300]}; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        if "failed with error code 404" in text:
            return UserError(f"{SETTING} = {shown_uri(uri)}: what answers there is not MLflow")
        if code in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR") or "API request to" in text:
            return silent
        return silent if isinstance(error, requests.RequestException) else None
    if isinstance(error, sqlalchemy.exc.OperationalError) or "OperationalError" in text:
        return silent
    return None

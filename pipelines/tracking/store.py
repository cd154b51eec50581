"""Where MLflow keeps what it is told, and what is said when it does not answer."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

# First: MLflow reads its surroundings when it is imported.
import pipelines.tracking.surroundings  # noqa: F401

# isort: split
import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from pipelines.errors import Unavailable, UserError
from pipelines.files import atomic_path
from pipelines.layout import Layout

SETTING = "MLFLOW_TRACKING_URI"
SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_CONNECT_TIMEOUT = 4


def tracking_uri(layout: Layout) -> str:
    """Return `MLFLOW_TRACKING_URI`, or the checkout's own database if it is not set.

    Raises:
        UserError: If it is neither a server nor a database.
    """
    uri = os.environ.get(SETTING) or f"sqlite:///{layout.state / 'mlflow.db'}"
    if scheme(uri) not in (*SERVERS, *_DATABASES, "databricks"):
        raise UserError(
            f"{SETTING} = {uri!r}: not a tracking store; allowed: a server (http://host:port), "
            "a database (sqlite:///path, postgresql://…), or unset for the checkout's own"
        )
    return uri


def shown_uri(uri: str) -> str:
    """Return a store's address without the password it may carry."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri)


def scheme(uri: str) -> str:
    """Return what kind of store an address names, without its driver."""
    return urlsplit(uri).scheme.partition("+")[0]


def _sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite store given by plain path, else None."""
    if scheme(uri) != "sqlite":
        return None
    database = sqlalchemy.make_url(uri).database
    plain = database and database != ":memory:" and not database.startswith("file:")
    return Path(database).absolute() if database and plain else None


def artifact_root(layout: Layout) -> str:
    """Return where the artifacts of a store without a server go: beside its file if it has one."""
    if root := os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        return root
    file = _sqlite_file(tracking_uri(layout))
    return ((file.parent if file else layout.state) / "artifacts").as_uri()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _create(database: Path, artifacts: str) -> None:
    """Make a new database whole, then move it into place.

    Two processes that migrated one file at once would break it, and so would a kill half-way.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with _locked(database.with_name(database.name + ".lock")):
        if database.exists():
            return
        with atomic_path(database) as temporary:
            store = SqlAlchemyStore(  # type: ignore[no-untyped-call]
                f"sqlite:///{temporary}", artifacts
            )
            store.engine.dispose()


def _create_tables(layout: Layout, uri: str) -> None:
    """Let MLflow make its tables in an empty database server, once.

    Two first starts at once would break each other; the lease's own table needs no such care.
    """
    from pipelines.tracking.leases import leased

    def empty() -> bool:
        engine = sqlalchemy.create_engine(uri, poolclass=NullPool)
        return not sqlalchemy.inspect(engine).has_table("alembic_version")

    if not empty():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with leased(layout, "first start"):
        if empty():
            store = SqlAlchemyStore(uri, artifact_root(layout))  # type: ignore[no-untyped-call]
            store.engine.dispose()


def _check_sqlite(uri: str, database: Path) -> None:
    """Find a damaged file at once; MLflow would try again for minutes."""
    try:
        with closing(sqlite3.connect(database, timeout=20)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise _broken(uri, str(error)) from None


def _check_server(uri: str) -> None:
    """Ask a server whether it is there; any answer will do.

    Raises:
        MlflowException: If there is none after the retries.
    """
    timeout = int(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"))
    http_request(  # type: ignore[no-untyped-call]
        host_creds=get_default_host_creds(uri.rstrip("/")),  # type: ignore[no-untyped-call]
        endpoint="/health",
        method="GET",
        timeout=min(_CONNECT_TIMEOUT, timeout),
    )


def _check_database(uri: str) -> None:
    """Reach a database server within seconds; MLflow alone would try for minutes."""
    dialect = scheme(uri)
    options = {} if dialect == "mssql" else {"connect_timeout": _CONNECT_TIMEOUT}
    try:
        engine = sqlalchemy.create_engine(uri, connect_args=options)
    except ImportError as error:
        raise UserError(f"{SETTING} = {shown_uri(uri)}: its driver is missing: {error}") from None
    for left in reversed(range(3)):
        try:
            engine.connect().close()
            return
        except sqlalchemy.exc.OperationalError:
            if not left:
                raise
        finally:
            engine.dispose()


def connect(layout: Layout) -> MlflowClient:
    """Return a client of the tracking store and registry; the embedded one is made if absent.

    Raises:
        UserError: If the setting is wrong, or the database is damaged, read-only or too old.
        Unavailable: If nothing answers after a few tries.
        OSError: If the disk does not take the new database.
    """
    uri = tracking_uri(layout)
    with answering(layout):
        database = _sqlite_file(uri)
        if database:
            if not database.exists():
                _create(database, artifact_root(layout))
            _check_sqlite(uri, database)
        elif scheme(uri) in SERVERS:
            _check_server(uri)
        elif scheme(uri) in _DATABASES and scheme(uri) != "sqlite":
            _check_database(uri)
            _create_tables(layout, uri)
        return MlflowClient(uri)


def experiment_id(layout: Layout, client: MlflowClient, name: str) -> str:
    """Return the id of an experiment, made or restored if need be."""
    found = client.get_experiment_by_name(name)
    if found is None:
        own = scheme(tracking_uri(layout)) in _DATABASES  # a server decides for itself
        try:
            return str(client.create_experiment(name, artifact_root(layout) if own else None))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was first
            assert found is not None
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


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


def _broken(uri: str, reason: str) -> UserError:
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
        return silent if "locked" in found[1] else _broken(uri, found[1])
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

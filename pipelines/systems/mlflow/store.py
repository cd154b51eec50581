"""Where MLflow keeps what it is told, and what is said when it does not answer."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.pool import NullPool

from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path
from pipelines.core.paths import Layout
from pipelines.systems.locks import locked
from pipelines.systems.mlflow.address import (
    DATABASES,
    SERVERS,
    SETTING,
    answering,
    artifact_root,
    broken,
    is_read_only,
    scheme,
    shown_uri,
    sqlite_file,
    tracking_uri,
)
from pipelines.systems.mlflow.artifacts import check_own
from pipelines.systems.mlflow.leases import leased
from pipelines.systems.mlflow.locations import follow_move

_CONNECT_TIMEOUT = 4


def _create(database: Path, artifacts: str) -> None:
    """Make a new database whole, then move it into place.

    Two processes that migrated one file at once would break it, and so would a kill half-way.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with locked(database.with_name(database.name + ".lock")):
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
        mode = "ro" if is_read_only(uri) else "rw"  # never "rwc": what is gone is not made here
        address = f"{database.as_uri()}?mode={mode}"
        with closing(sqlite3.connect(address, timeout=20, uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise broken(uri, str(error)) from None


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
        database = sqlite_file(uri)
        if database:
            if not database.exists() and not is_read_only(uri):
                _create(database, artifact_root(layout))
            _check_sqlite(uri, database)
        elif scheme(uri) in SERVERS:
            _check_server(uri)
        elif scheme(uri) in DATABASES and scheme(uri) != "sqlite":
            _check_database(uri)
            _create_tables(layout, uri)
        return MlflowClient(uri)


def probe(layout: Layout) -> None:
    """Put a question to the tracking store whose answer does not matter.

    Raises:
        UserError: If the store cannot be used.
        Unavailable: If it does not answer.
    """
    client = connect(layout)
    with answering(layout):
        client.search_experiments(max_results=1)


def experiment_id(layout: Layout, client: MlflowClient, name: str) -> str:
    """Return the id of an experiment, made or restored if need be.

    Raises:
        UserError: If its files would go to a place that is not this project's.
    """
    follow_move(layout)
    found = client.get_experiment_by_name(name)
    if found is None:
        own = scheme(tracking_uri(layout)) in DATABASES  # a server decides for itself
        try:
            return str(client.create_experiment(name, artifact_root(layout) if own else None))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was first
            assert found is not None
    check_own(layout, found.artifact_location)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)

"""A real PostgreSQL of the tests' own: on a socket in a temporary folder, gone with the session."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

WITHIN = 90.0
"""Seconds for the server to start, or for a database to be left by its last user."""


@dataclass(frozen=True)
class Postgres:
    """A running cluster.

    Attributes:
        folder: Of its socket.
    """

    folder: Path

    def uri(self, database: str) -> str:
        """Return a database's address as SQLAlchemy and MLflow take it."""
        return f"postgresql://prong@/{database}?host={self.folder}"

    def create(self, database: str, template: str = "template1") -> str:
        """Make a database, as a copy of another one that nobody uses, and return its address."""
        deadline = time.monotonic() + WITHIN
        while True:
            try:
                self._run(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
            except psycopg2.errors.ObjectInUse:  # a killed client's server process is on its way
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
                continue
            return self.uri(database)

    def drop(self, database: str) -> None:
        """Remove a database, in use or not."""
        self._run(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def _run(self, statement: str) -> None:
        connection = psycopg2.connect(host=str(self.folder), user="prong", dbname="postgres")
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()


def _programs() -> Path | None:
    """Return the folder of the server's programs, the newest, or None."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[-3].zfill(4)
    )
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).parent if on_path else None


def _owner() -> str | None:
    """Return the user to run it as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A cluster for this session; skipped where PostgreSQL is not installed."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (initdb in /usr/lib/postgresql/*/bin or on PATH)")
    owner = _owner()
    # Not in pytest's own folder: that one is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="prong-pg-"))
    try:
        if owner is not None:
            shutil.chown(folder, owner)
        yield from _serve(programs, folder, owner)
    finally:
        shutil.rmtree(folder)


def _serve(programs: Path, folder: Path, owner: str | None) -> Iterator[Postgres]:
    data, log = folder / "data", folder / "log"
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
    log.touch()
    with log.open("ab") as out:
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "prong", "-A", "trust", "-E", "UTF8", "-N"],
            user=owner,
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=out,
            check=True,
            timeout=300,
        )
        settings = ("-F", "-c", "listen_addresses=", "-c", "max_connections=200")
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, *settings],
            user=owner,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        _wait(server, folder, log)
        yield Postgres(folder)
    finally:
        server.send_signal(signal.SIGINT)  # ends sessions and stops
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _end_with_parent() -> None:
    """Let the kernel stop the server when the tests' process is gone, killed outright even."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def _wait(server: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
    deadline = time.monotonic() + WITHIN
    while True:
        try:
            psycopg2.connect(host=str(folder), user="prong", dbname="postgres").close()
        except psycopg2.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
            continue
        return

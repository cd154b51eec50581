"""One holder of a name at a time, across machines: a lease that expires unless it is renewed.

A holder that dies is followed once its lease has run out, or at once where it can be seen from
here that its process is gone. A holder that was only asleep meanwhile finds its token outdated:
`Lease.check` raises, and is to be called before every step that must not be taken twice. Each
taking of the lease has a higher token than the one before.

In a database the lease is a row of a table of our own, changed by compare-and-swap and dated by
the database's clock. A server has no such table; see `pipelines/systems/mlflow/server_leases.py`.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.systems.liveness import LONGEST_LEASE, Number, described, gone, identity
from pipelines.systems.mlflow.address import (
    SERVERS,
    answering,
    scheme,
    shown_uri,
    tracking_uri,
)
from pipelines.systems.mlflow.locations import follow_move
from pipelines.systems.mlflow.server_leases import ServerLeases

LASTS = 30.0
"""Seconds a lease lasts unless renewed."""
PATIENCE = 600.0
"""Seconds to wait for one that others hold."""
_log = logging.getLogger(__name__)

_TABLE = sa.Table(
    "prong_leases",
    sa.MetaData(),
    sa.Column("name", sa.String(250), primary_key=True),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("holder", sa.String(1000), nullable=False),
    sa.Column("expires", sa.Float(53), nullable=False),  # seconds since 1970
)
_TOKEN = Number(0, 2**31 - 2)
"""What fits the column, and leaves room for one more."""
_AFRESH = 2**29
_READ = ("token", "holder", "expires")
# sqlite's columns take values of any type, and text that is none.
_READ_ON_SQLITE = (
    "CASE typeof(token) WHEN 'integer' THEN token END",
    "CASE typeof(holder) WHEN 'text' THEN CAST(holder AS BLOB) END",
    "CASE WHEN typeof(expires) IN ('integer', 'real') THEN expires END",
)
_CLOCKS = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())",
    "mysql": "unix_timestamp(sysdate(6))",
    "mssql": "datediff_big(millisecond, '1970-01-01', sysutcdatetime()) / 1000.0",
}


class LeaseLost(Unavailable):
    """Another process took the lease over while this one was asleep; nothing was changed."""


class Store(Protocol):
    """Where leases are kept."""

    def take(self, name: str, lasts: float) -> int | None:
        """Take a free, expired or dead holder's lease; return its token, or None."""

    def renew(self, name: str, token: int, lasts: float) -> bool:
        """Lengthen a lease; return False if it has passed to another."""

    def give_back(self, name: str, token: int) -> None:
        """Let the next one take it at once."""

    def holder(self, name: str) -> str:
        """Return what stands for who holds it: an identity as JSON, if nobody meddled."""


class TableLeases:
    """Leases as rows of the table `prong_leases` in MLflow's own database.

    Args:
        uri: The database, as SQLAlchemy takes it.
    """

    def __init__(self, uri: str) -> None:
        # No pool: a connection kept open would outlive a pause and hold the database's locks.
        wait = {"timeout": 20} if scheme(uri) == "sqlite" else {}
        self._engine = sa.create_engine(uri, poolclass=NullPool, connect_args=wait)
        dialect = self._engine.dialect.name
        self._now: sa.ColumnElement[float] = sa.literal_column(_CLOCKS[dialect], sa.Float)
        self._row = [
            sa.literal_column(text, sa.types.NullType())
            for text in (_READ_ON_SQLITE if dialect == "sqlite" else _READ)
        ]

    def take(self, name: str, lasts: float) -> int | None:
        """Take a lease if it is free, expired, or its holder is seen to be dead."""
        try:
            return self._take(name, lasts)
        except (OperationalError, ProgrammingError):
            self._make_table()
            return self._take(name, lasts)

    def _make_table(self) -> None:
        """Make the table unless it is there; another process may be making it as well."""
        if sa.inspect(self._engine).has_table(_TABLE.name):
            return
        try:
            _TABLE.create(self._engine)
        except (OperationalError, ProgrammingError, IntegrityError):
            # PostgreSQL reports a clash in its own catalogue if two do so at once.
            if not sa.inspect(self._engine).has_table(_TABLE.name):
                raise

    def _take(self, name: str, lasts: float) -> int | None:
        mine = json.dumps(identity())
        named = _TABLE.c.name == name
        read = sa.select(*self._row, self._now).select_from(_TABLE).where(named)
        with self._engine.connect() as connection:
            found = connection.execute(read).first()
        if found is None:
            new = sa.insert(_TABLE).values(
                name=name, token=1, holder=mine, expires=self._now + lasts
            )
            try:
                with self._engine.begin() as connection:
                    connection.execute(new)
            except IntegrityError:
                return None  # another was first
            return 1
        token, holder = _TOKEN.parse(found[0]), _text(found[1])
        if token is not None and not _has_expired(found[2], found[3]) and not gone(holder):
            return None
        if token is None:
            # It may have been anyone's: the next is one that nobody holds.
            following = random.randrange(_AFRESH, 2 * _AFRESH)
            readable = self._row[0].between(_TOKEN.least, _TOKEN.most)
            same = sa.or_(self._row[0].is_(None), sa.not_(readable))
        else:
            following, same = int(token) + 1, _TABLE.c.token == int(token)
        swap = (
            sa.update(_TABLE)
            .where(named, same)
            .values(token=following, holder=mine, expires=self._now + lasts)
        )
        with self._engine.begin() as connection:
            return following if connection.execute(swap).rowcount else None

    def renew(self, name: str, token: int, lasts: float) -> bool:
        """Lengthen a lease unless it has passed to another."""
        return self._set(name, token, self._now + lasts)

    def give_back(self, name: str, token: int) -> None:
        """Let the lease expire now; the row stays, so that tokens go on rising."""
        self._set(name, token, sa.literal(0.0))

    def _set(self, name: str, token: int, expires: sa.ColumnElement[float]) -> bool:
        mine = (_TABLE.c.name == name) & (_TABLE.c.token == token)
        with self._engine.begin() as connection:
            return connection.execute(
                sa.update(_TABLE).where(mine).values(expires=expires)
            ).rowcount == 1  # fmt: skip

    def holder(self, name: str) -> str:
        """Return what stands for the holder of a lease: its identity as JSON, if nobody meddled."""
        wanted = sa.select(self._row[1]).select_from(_TABLE).where(_TABLE.c.name == name)
        with self._engine.connect() as connection:
            return _text(connection.execute(wanted).scalars().first())


def _text(value: object) -> str:
    """Return a stored text; empty if it is none."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return value if isinstance(value, str) else ""


def _has_expired(expires: object, now: float) -> bool:
    """Say whether a lease has run out; so has one whose date cannot be, or be read."""
    date = Number(0.0, now + LONGEST_LEASE).parse(expires)
    return date is None or date <= now


class Lease:
    """A lease that is held and renewed by a thread of its own.

    Attributes:
        name: Of what is leased.
        token: Higher than that of every holder before.
    """

    def __init__(self, layout: Layout, store: Store, name: str, token: int, lasts: float) -> None:
        self.name, self.token = name, token
        self._layout = layout
        self._store, self._lasts = store, lasts
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ending.wait(self._lasts / 6):
            try:
                if not self._store.renew(self.name, self.token, self._lasts):
                    return  # lost: `check` says so where it matters
            except Exception as error:  # the store is away for a moment; the next beat may pass
                _log.debug("lease %s not renewed: %s", self.name, error)

    def check(self) -> None:
        """Make sure that this process still holds the lease.

        Raises:
            LeaseLost: If another has taken it over.
            UserError: If the store cannot be used.
            Unavailable: If it does not answer.
        """
        with _told(self._layout):
            if self._store.renew(self.name, self.token, self._lasts):
                return
            other = described(self._store.holder(self.name))
        raise LeaseLost(
            f"{self.name}: this process was asleep and {other} has taken over; "
            "nothing more was changed; run the command again"
        )

    def give_back(self) -> None:
        """Stop renewing and let the next one in."""
        self._ending.set()
        self._thread.join()
        self._store.give_back(self.name, self.token)


def lease_store(layout: Layout) -> Store:
    """Return where the leases of this checkout's tracking store are kept."""
    uri = tracking_uri(layout)
    if scheme(uri) in SERVERS or scheme(uri) == "databricks":
        return ServerLeases(MlflowClient(uri))
    return TableLeases(uri)


@contextmanager
def _told(layout: Layout) -> Iterator[None]:
    """Turn whatever MLflow or its database raises into a message: a lease has no other answer."""
    try:
        with answering(layout):
            yield
    except (MlflowException, SQLAlchemyError) as error:
        said = " ".join(str(error).split())[:300]
        uri = shown_uri(tracking_uri(layout))
        raise UserError(f"MLflow at {uri}: leases cannot be kept: {said}") from error


@contextmanager
def leased(layout: Layout, name: str, *, patience: float = PATIENCE) -> Iterator[Lease | None]:
    """Hold the lease of a name among all who use this tracking store.

    Args:
        layout: The checkout; its store has been connected to before.
        name: What is leased.
        patience: Seconds to wait while others hold it; 0 tries once.

    Yields:
        The lease, or None if `patience` is 0 and another holds it.

    Raises:
        UserError: If the store cannot be used.
        Unavailable: If others hold it for longer than `patience`, or the store does not answer.
    """
    follow_move(layout)
    store = lease_store(layout)
    deadline, pause = time.monotonic() + patience, 0.02
    with _told(layout):
        while (token := store.take(name, LASTS)) is None:
            if not patience:
                break
            if time.monotonic() > deadline:
                other = described(store.holder(name))
                raise Unavailable(
                    f"{name}: {other} has been at work for {patience:.0f} s; "
                    "wait for it or end it, and run again"
                )
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(1.5 * pause, 0.5)
    if token is None:
        yield None
        return
    lease = Lease(layout, store, name, token, LASTS)
    try:
        yield lease
    finally:
        with _told(layout):
            lease.give_back()

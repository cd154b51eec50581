"""SQLite without waiting for the disk.

A process that dies, however it dies, loses nothing by it, since the system has what was written;
only a machine that loses its power does, and no test cuts that.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine


def sqlite() -> None:
    """Let every connection that SQLAlchemy makes from now on leave out the waiting."""
    if not event.contains(Engine, "connect", _unsynchronised):
        event.listen(Engine, "connect", _unsynchronised)


def _unsynchronised(connection: Any, _record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")

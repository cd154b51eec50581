"""Locks on files of this machine; the kernel lets go of them when their holder dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipelines.core.waiting import wait_until


@contextmanager
def locked(path: Path, patience: float | None = None) -> Iterator[IO[str]]:
    """Hold a lock, waiting while another process does.

    Args:
        path: The file to lock; made with its folder if absent. It may be read and written.
        patience: Seconds to wait; None: for as long as it takes.

    Raises:
        BlockingIOError: If another process holds it for longer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if patience is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        elif not wait_until(lambda: take(file), patience, pause=0.1):
            raise BlockingIOError(f"{path} is locked")
        yield file


def take(file: IO[Any]) -> bool:
    """Lock an open file if no other process holds it; say whether that was so."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_shared(file: IO[Any]) -> None:
    """Lock an open file together with others that do the same."""
    fcntl.flock(file, fcntl.LOCK_SH)


def let_go(file: IO[Any]) -> None:
    """Unlock an open file."""
    fcntl.flock(file, fcntl.LOCK_UN)

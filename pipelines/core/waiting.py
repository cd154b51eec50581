"""Waiting for something, up to a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    happened: Callable[[], object],
    patience: float,
    *,
    pause: float = 0.05,
    longest: float | None = None,
) -> bool:
    """Ask again and again until something has happened; return False when patience is over.

    Args:
        happened: Asked at once, and after every pause; what it raises is raised.
        patience: Seconds. It is asked a last time when they are over.
        pause: Seconds between two questions.
        longest: Each pause is half as long again as the one before, up to so many seconds; None:
            all are equal.
    """
    deadline = time.monotonic() + patience
    while not happened():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        if longest is not None:
            pause = min(1.5 * pause, longest)
    return True

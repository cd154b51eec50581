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
    """Call `happened` until it returns true; return False when the time is over.

    Args:
        happened: Called immediately and after every pause; its exceptions are passed on.
        patience: Seconds; it is called a last time when they are over.
        pause: Seconds between two calls.
        longest: Each pause is 1.5 times the one before, up to this many seconds; None: all pauses
            are equal.
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

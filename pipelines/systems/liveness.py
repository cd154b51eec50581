"""The identity of a process, by which others can tell later whether it still runs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from pipelines.systems.processes import machine, process_start

HEARTBEAT = "prong.heartbeat"
"""Tag: when the run's process last said that it lives, seconds since 1970."""
STALE = 15 * 60
"""Seconds after which a process that cannot be looked at counts as gone."""
START = "prong.process_start"
"""Tag: when the process began."""
_HOST, _PID, _KERNEL = "prong.host", "prong.pid", "prong.kernel"


def identity() -> dict[str, str]:
    """Return the tags by which this process can be looked for later."""
    return {
        _HOST: socket.gethostname(),
        _PID: str(os.getpid()),
        _KERNEL: machine(),
        START: process_start(os.getpid()) or "",
        HEARTBEAT: f"{time.time():.0f}",
    }


def gone(tags: Mapping[str, str]) -> bool:
    """Say whether the process with this identity ran on this boot and is gone.

    False as well if it ran elsewhere: it cannot be seen from here.
    """
    return tags[_KERNEL] == machine() and process_start(int(tags[_PID])) != tags[START]


def dead(tags: Mapping[str, str]) -> bool:
    """Say whether the process with this identity is gone, or has been silent for `STALE` seconds.

    Args:
        tags: What `identity` returned there, `HEARTBEAT` renewed since.
    """
    if tags[_KERNEL] == machine():
        return gone(tags)
    # Another machine, container or boot: its process cannot be seen from here.
    return time.time() - float(tags.get(HEARTBEAT, "0")) > STALE

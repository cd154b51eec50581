"""Which runs have a process behind them: one that was killed must not stay RUNNING for ever."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from pipelines.layout import Layout
from pipelines.processes import machine, process_start
from pipelines.tracking.store import answering, connect

HEARTBEAT = "prong.heartbeat"
"""Tag: when the run's process last said that it lives, seconds since 1970."""
STALE = 15 * 60
"""Seconds after which a process that cannot be looked at counts as gone."""
_HOST, _PID, _KERNEL, _START = "prong.host", "prong.pid", "prong.kernel", "prong.process_start"


def identity() -> dict[str, str]:
    """Return the tags by which this process can be looked for later."""
    return {
        _HOST: socket.gethostname(),
        _PID: str(os.getpid()),
        _KERNEL: machine(),
        _START: process_start(os.getpid()) or "",
        HEARTBEAT: f"{time.time():.0f}",
    }


def gone(tags: Mapping[str, str]) -> bool:
    """Say whether the process with this identity ran on this boot and is gone.

    False as well if it ran elsewhere: it cannot be seen from here.
    """
    return tags[_KERNEL] == machine() and process_start(int(tags[_PID])) != tags[_START]


def dead(tags: Mapping[str, str]) -> bool:
    """Say whether the process with this identity is gone, or has been silent for `STALE` seconds.

    Args:
        tags: What `identity` returned there, `HEARTBEAT` renewed since.
    """
    if tags[_KERNEL] == machine():
        return gone(tags)
    # Another machine, container or boot: its process cannot be seen from here.
    return time.time() - float(tags.get(HEARTBEAT, "0")) > STALE


def close_dead_runs(layout: Layout) -> list[str]:
    """End as KILLED every training run whose process is gone, and return their ids.

    A process of this boot and namespace is looked up; any other counts as gone when it has given
    no sign of life for `STALE` seconds. Runs that other programs made are left alone.

    Raises:
        UserError: If the store cannot be used.
        Unavailable: If it does not answer.
    """
    client = connect(layout)
    closed = []
    with answering(layout):
        experiments = [e.experiment_id for e in client.search_experiments()]
        if not experiments:
            return []
        found = f"attributes.status = 'RUNNING' and tags.`{_START}` != ''"
        for run in client.search_runs(experiments, found):
            if dead(run.data.tags):
                client.set_tag(run.info.run_id, "prong.closed", "its process was gone")
                client.set_terminated(run.info.run_id, "KILLED")
                closed.append(run.info.run_id)
    return closed

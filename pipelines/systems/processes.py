"""Child processes that end when they should: in a group of their own, and with their parent.

A plain child outlives a killed parent: cancelling a flow would leave the ranks of a training
running. So each child started here leads a process group that is ended as a whole, and a child
can watch over its keeper, the process that started its group, for the case that it was killed
outright. The keeper is named in the environment, not taken from `getppid`: a child that is still
loading when its parent dies would take the process that adopted it for its parent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

from pipelines.core.waiting import wait_until

GRACE = 8.0
"""Seconds between SIGTERM and SIGKILL."""
_KEEPER = "PRONG_KEEPER"
"""Environment variable: process id and start of the process without which to end."""


def process_start(pid: int) -> str | None:
    """Return when a process started, in ticks since boot; None if it is gone or a zombie.

    With the process id this names one process for good: ids are used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = stat.rpartition(")")[2].split()  # the name before may hold anything
    return None if state in "ZX" else rest[18]


@cache
def machine() -> str:
    """Return what tells one boot of one machine, and one process namespace, from all others."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"


def kept(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose process ends with the present one if it is `end_with_keeper`."""
    return {**env, _KEEPER: f"{os.getpid()}:{process_start(os.getpid())}"}


def _alive(group: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, 0)
        return True
    return False


def end_group(process: subprocess.Popen[bytes], grace: float = GRACE) -> None:
    """End the process group that `process` leads: SIGTERM, up to `grace` seconds, SIGKILL."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)

    def gone() -> bool:
        process.poll()  # reaps the leader, else it would count as alive
        return not _alive(process.pid)

    if wait_until(gone, grace):
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_group(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    tick: Callable[[], None] | None = None,
    output: Path | None = None,
    grace: float = GRACE,
) -> int:
    """Run `command` in a process group of its own and return its exit code.

    On any exception here (interrupt, cancellation) the whole group is ended first.

    Args:
        command: Program and arguments.
        cwd: Working directory.
        env: The whole environment.
        tick: Called about ten times a second while the command runs; an exception ends it.
        output: File to which all that the group prints is appended; else it prints here.
        grace: Seconds between SIGTERM and SIGKILL.
    """
    with ExitStack() as stack:
        sink = stack.enter_context(output.open("ab")) if output else None
        process = subprocess.Popen(
            command, cwd=cwd, env=kept(env), start_new_session=True, stdout=sink, stderr=sink
        )
        try:
            while True:
                try:
                    return process.wait(timeout=0.1 if tick else None)
                except subprocess.TimeoutExpired:
                    if tick:
                        tick()
        finally:
            end_group(process, grace)  # a no-op after a clean end without stragglers


def _terminated(signum: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signum)


def exit_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit, so that `finally` blocks and exit handlers run."""
    signal.signal(signal.SIGTERM, _terminated)


def end_with_keeper(interval: float = 0.5) -> None:
    """Send this process SIGTERM, later SIGKILL, once its parent or its keeper is gone.

    To be called before anything slow is imported: what is gone already counts as well.
    """
    parent = os.getppid()
    pid, _, start = os.environ.get(_KEEPER, "").partition(":")

    def watch() -> None:
        while os.getppid() == parent and (not pid or process_start(int(pid)) == start):
            time.sleep(interval)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-keeper", daemon=True).start()

"""A command under limits of time, memory and processors, and its end as a whole.

For work on files that somebody else made: a model that loops, outgrows the memory or crashes the
runtime ends its own process only. The limits are set from outside, by the kernel, before the
command can have read a file.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.systems.processes import end_group, end_with_keeper, kept

OUT_OF_MEMORY = 77
"""Exit code by which a command says that it could not have more memory."""
_PAUSE = 0.05  # seconds between two looks at the memory
_LARGEST_FILE = 64 * 2**20  # bytes of any file that the command writes
_PR_SET_PDEATHSIG = 1
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "TZ")
"""Variables that the command is given; all others might hold an address or a password."""


@dataclass(frozen=True)
class Limits:
    """What a command may use.

    Attributes:
        seconds: Of wall-clock time.
        memory: Bytes, of private writable memory and of resident memory.
        processors: Number of processors.
    """

    seconds: float
    memory: int
    processors: int


@dataclass(frozen=True)
class ConfinedRun:
    """How a command under limits came to its end.

    Attributes:
        code: Exit code; of a signal, the number below zero.
        limit: The limit that ended it; empty if it ended by itself.
        output: The last 2,000 bytes that it printed, decoded.
    """

    code: int
    limit: Literal["", "seconds", "memory"]
    output: str

    @property
    def signal(self) -> str:
        """Name of the signal that ended it, such as `SIGSEGV`; empty if none did."""
        if self.code >= 0:
            return ""
        with suppress(ValueError):
            return signal.Signals(-self.code).name
        return f"signal {-self.code}"


def run_confined(
    command: Sequence[str], *, cwd: Path, limits: Limits, log: Path, sources: Path
) -> ConfinedRun:
    """Run a command under limits, in a session of its own, and wait for its end.

    It gets no input and an environment that names neither services nor secrets. On any exception
    here (interrupt, cancellation) its whole process group is ended first.

    Args:
        command: Program and arguments.
        cwd: Working directory, also its home and its directory for temporary files.
        limits: What it may use. A process that grows beyond `memory` is killed; so is the group
            once `seconds` are over.
        log: File for all that it prints.
        sources: Directory from which Python modules are imported.
    """
    deadline = time.monotonic() + limits.seconds
    limit: Literal["", "seconds", "memory"] = ""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=_environment(cwd, sources),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )
        try:
            with suppress(ProcessLookupError):  # it has ended already
                _confine(process.pid, limits)
            while process.poll() is None:
                if time.monotonic() > deadline:
                    limit = "seconds"
                elif resident(process.pid) > limits.memory:
                    limit = "memory"
                if limit:
                    break
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_PAUSE)
        finally:
            end_group(process, grace=0.0)
    code = process.wait()
    if code == OUT_OF_MEMORY and not limit:
        limit = "memory"
    return ConfinedRun(code, limit, end_of(log))


def start_confined(
    command: Sequence[str], *, cwd: Path, limits: Limits, log: Path, sources: Path
) -> subprocess.Popen[bytes]:
    """Start a command under limits that is talked to by pipes; end it by `end_group`.

    The kernel holds it to `limits` but for the resident memory, which the caller is to look at
    (`resident`). Arguments are those of `run_confined`; without end: `limits.seconds` infinite.
    """
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=_environment(cwd, sources),
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            bufsize=0,
        )
    with suppress(ProcessLookupError):  # it has ended already
        _confine(process.pid, limits)
    return process


def _environment(cwd: Path, sources: Path) -> dict[str, str]:
    """Return an environment that names neither services nor secrets."""
    given = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    own = {"HOME": str(cwd), "TMPDIR": str(cwd), "PYTHONPATH": str(sources)}
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "PYTHONSAFEPATH": "1"}
    return kept({**given, **own, **quiet})


def _confine(pid: int, limits: Limits) -> None:
    """Set the kernel's limits on a process that has just been started, and that inherits them on.

    Raises:
        ProcessLookupError: If it is gone.
    """
    # Not RLIMIT_AS: a build of ONNX Runtime or torch for GPUs maps far more than it uses.
    bounds = {
        resource.RLIMIT_DATA: limits.memory,
        resource.RLIMIT_FSIZE: _LARGEST_FILE,
        resource.RLIMIT_CORE: 0,
    }
    if math.isfinite(limits.seconds):
        bounds[resource.RLIMIT_CPU] = int(limits.seconds * limits.processors) + 5
    for kind, bound in bounds.items():
        hard = resource.prlimit(pid, kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.prlimit(pid, kind, (bound, bound))
    allowed = sorted(os.sched_getaffinity(pid))
    if len(allowed) > limits.processors:
        first = pid % len(allowed)  # so that two commands at once need not share
        os.sched_setaffinity(pid, (2 * allowed)[first : first + limits.processors])
    with suppress(OSError):  # first to go if the whole machine runs out of memory
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0
    return int(pages) * resource.getpagesize()


def end_of(log: Path) -> str:
    """Return the last 2,000 bytes that a command printed, decoded."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 2000, 0))
        return file.read().decode(errors="replace").strip()


def end_with_parent() -> None:
    """End this process once its parent or its keeper is gone; to be called before anything else.

    The kernel does it by SIGKILL: a thread of Python may never run again where a library holds
    the interpreter's lock.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    end_with_keeper()  # also covers a parent that was gone before

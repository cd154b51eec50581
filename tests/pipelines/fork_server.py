"""Processes that need not import anything: a server imports all once, and forks each of them.

The server connects to nothing and starts no thread, so that a process begins with imported modules
only, as a program does after its imports. Importing torch and MLflow anew takes seconds each time.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil

from pipelines.core.waiting import wait_until

IMPORTED = (
    *("pytest", "torch", "torch._dynamo", "rank_processes", "release_commands"),
    *("pipelines.training.loop", "pipelines.training.checkpoint", "pipelines.training.events"),
    *("pipelines.release.upload", "pipelines.release.best_champions", "pipelines.gates.judging"),
    *("pipelines.registry.findings", "pipelines.registry.stored_version"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *("mlflow.pyfunc", "model_signing", "psycopg2", "alembic.command", "forked_from"),
)
"""What the functions need, also where they import it late."""
KILLED = -signal.SIGKILL
OUTPUT = ("out", "err")


@dataclass(frozen=True)
class Ended:
    """A process that came to its end.

    Attributes:
        code: Exit code; of a signal, the number below zero.
        said: What its function returned, or the error it ended with; None if it was killed.
        out: What it printed.
        err: What it wrote to stderr.
    """

    code: int
    said: Any
    out: str
    err: str

    @property
    def output(self) -> str:
        """Both that it printed and that it wrote to stderr."""
        return self.out + self.err


class Forked:
    """A process that was started; it ends with the tests at the latest.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, process: ForkServerProcess, folder: Path) -> None:
        self._process, self._folder = process, folder
        assert process.pid is not None
        self.pid: int = process.pid

    def running(self) -> bool:
        """Say whether it is still there."""
        return self._process.is_alive()

    def kill(self) -> None:
        """Send SIGKILL; nothing if it has ended."""
        self._process.kill()

    def output(self) -> str:
        """Return what it has printed so far, and after it what it wrote to stderr."""
        return "".join(self._read())

    def _read(self) -> tuple[str, str]:
        out, err = ((self._folder / name).read_text() for name in OUTPUT)
        return out, err

    def wait(self, seconds: float = 240) -> Ended:
        """Wait for its end.

        Raises:
            TimeoutError: If it did not come in time.
        """
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            raise TimeoutError(f"process {self.pid} has not ended: {self.output()}")
        result = self._folder / "result"
        said = json.loads(result.read_text()) if result.exists() else None
        return Ended(code, said, *self._read())


def start(
    function: Callable[..., Any],
    *arguments: Any,
    leaves: Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    exits: bool = False,
) -> Forked:
    """Call a function of a module in a new process.

    Args:
        function: Named by its module, so not one made within another.
        arguments: What it is called with.
        leaves: Directory for what it prints and returns.
        cwd: The process's working directory.
        env: All its environment variables, if not those of the present process.
        exits: Whether the function returns the exit code, and not a value to hand back.
    """
    _start_server()
    leaves.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="forked-", dir=leaves))
    whole = dict(os.environ if env is None else env)
    for name in OUTPUT:
        (folder / name).touch()
    process = multiprocessing.get_context("forkserver").Process(
        target=_call, args=(function, arguments, cwd, whole, exits, folder), daemon=True
    )
    process.start()
    return Forked(process, folder)


def until_stopped(process: Forked) -> None:
    """Wait until a process has stopped itself."""

    def stopped() -> bool:
        return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED

    assert wait_until(stopped, 90, pause=0.02), "the process did not stop"


@cache
def _start_server() -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))
    before = dict(os.environ)
    # Before Python 3.13 the server looks for modules where a new interpreter would, and passes over
    # those that it does not find.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    for name in before:
        if name.startswith(("MLFLOW_", "PREFECT_")):  # the server's imports set them anew
            del os.environ[name]
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _set_environment(env: Mapping[str, str]) -> None:
    """Set the environment, where it says nothing to what modules set as they were imported."""
    started = Path("/proc/self/environ").read_bytes().decode(errors="surrogateescape")
    before = set(started.split("\0"))
    imports = {k: v for k, v in os.environ.items() if f"{k}={v}" not in before}
    os.environ.clear()
    os.environ.update({**imports, **env})


def _call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    cwd: Path,
    env: dict[str, str],
    exits: bool,
    folder: Path,
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    for number, name in enumerate(OUTPUT, 1):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), number)
    _set_environment(env)
    os.chdir(cwd)
    code, said = 0, None
    try:
        missing = set(IMPORTED) - set(sys.modules)
        assert not missing, f"the server could not import {missing}"
        said = function(*arguments)
        code = said if exits else 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        code, said = 1, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    with contextlib.suppress(ValueError, OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    (folder / "result").write_text(json.dumps(said))
    os._exit(code)

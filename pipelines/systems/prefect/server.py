"""The Prefect servers of a checkout: on loopback, in its own store, gone with who started them.

Prefect would start one for a run by itself, but leaves it behind when the run is killed. These
watch their parent, and come up while the run still imports what it needs. A worker's server also
makes the scheduled runs, and is used by every other command of the checkout while it is there.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from pipelines.core.errors import Unavailable
from pipelines.core.files import write_json
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.systems.processes import end_group, end_with_keeper, kept, process_start

PATIENCE = 120.0
"""Seconds for the server to answer; two busy cores need a quarter of a minute."""
PORT = 4200
"""Where a worker's server listens if it can; else on any free port."""


@contextmanager
def prefect_api(layout: Layout) -> Iterator[Callable[[], None]]:
    """Provide a Prefect API for this process; must come before Prefect is imported.

    Where the environment names a server or a Prefect home of the user's own, nothing is started;
    nor while the checkout's worker keeps one.

    Args:
        layout: The checkout; the server's database lies in its state directory.

    Yields:
        A function that returns once the server answers.

    Raises:
        Unavailable: From that function, if the server ends or does not answer.
    """
    if "PREFECT_API_URL" in os.environ or os.environ.get("PREFECT_HOME") != str(
        layout.state / "prefect"
    ):
        yield lambda: None
        return
    address = standing_server(layout)
    if address is not None:
        os.environ["PREFECT_API_URL"] = address
        try:
            yield lambda: None
        finally:
            del os.environ["PREFECT_API_URL"]
        return
    with _served(layout, 0, "brief") as (process, address):
        yield lambda: _wait(process, address)


@contextmanager
def scheduling_server(layout: Layout) -> Iterator[tuple[str, subprocess.Popen[bytes] | None]]:
    """Provide the server that a worker needs, with all its services; others find it meanwhile.

    Yields:
        Its address, and its process unless `PREFECT_API_URL` names one that is there already.

    Raises:
        Unavailable: If it ends or does not answer.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        yield url, None
        return
    with _served(layout, PORT, "scheduling") as (process, address):
        _wait(process, address)
        note = _note(layout)
        write_json(note, {"api": address, "pid": process.pid, "start": process_start(process.pid)})
        try:
            yield address, process
        finally:
            note.unlink(missing_ok=True)


def standing_server(layout: Layout) -> str | None:
    """Return the address of the server that the checkout's worker keeps, if there is one."""
    try:
        said = json.loads(_note(layout).read_text(encoding="utf-8"))
        alive = process_start(int(said["pid"])) == said["start"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return str(said["api"]) if alive else None


def _note(layout: Layout) -> Path:
    return layout.state / "prefect-server.json"


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:  # busy: another checkout's worker, or `prong ui`
        return socket.create_server(("127.0.0.1", 0))


@contextmanager
def _served(layout: Layout, port: int, kind: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with _listen(port) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pipelines.systems.prefect.server",
                str(listener.fileno()),
                kind,
            ],
            cwd=layout.root,
            env=kept({**os.environ, "PREFECT_API_URL": address}),
            pass_fds=(listener.fileno(),),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    os.environ["PREFECT_API_URL"] = address
    try:
        yield process, address
    finally:
        del os.environ["PREFECT_API_URL"]
        end_group(process)


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    def answers() -> bool:
        if process.poll() is not None:
            home = os.environ["PREFECT_HOME"]
            raise Unavailable(
                f"Prefect: its server ended with exit code {process.returncode}; is {home} "
                "writable and whole? (removing it loses only the history of runs)"
            )
        try:
            return requests.get(f"{address}/health", timeout=2).ok
        except requests.RequestException:
            return False

    if not wait_until(answers, PATIENCE, pause=0.1):
        raise Unavailable(f"Prefect: its server did not answer within {PATIENCE:.0f} s")


def main(descriptor: int, kind: str) -> None:
    """Serve on an open socket until told to end or left alone.

    Args:
        descriptor: Of the socket.
        kind: `brief` serves one run; `scheduling` also makes and watches scheduled runs.
    """
    end_with_keeper()
    import uvicorn
    from prefect.server.api.server import create_app

    application = create_app(ephemeral=kind == "brief", final=True)
    settings = uvicorn.Config(application, log_level="critical", lifespan="on")
    uvicorn.Server(settings).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

"""The Prefect server of one run: on loopback, in the checkout's own store, gone with the run.

Prefect would start one by itself, but leaves it behind when the run is killed. This one watches
its parent, and comes up while the run still imports what it needs.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import requests

from pipelines.errors import Unavailable
from pipelines.layout import Layout
from pipelines.processes import end_group, end_with_keeper, kept

PATIENCE = 120.0
"""Seconds for the server to answer; two busy cores need a quarter of a minute."""


@contextmanager
def prefect_api(layout: Layout) -> Iterator[Callable[[], None]]:
    """Provide a Prefect API for this process; must come before Prefect is imported.

    Where the environment names a server or a Prefect home of the user's own, nothing is started.

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
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.prefect_server", str(listener.fileno())],
            cwd=layout.root,
            env=kept(os.environ),
            pass_fds=(listener.fileno(),),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    os.environ["PREFECT_API_URL"] = address
    try:
        yield lambda: _wait(process, address)
    finally:
        del os.environ["PREFECT_API_URL"]
        end_group(process)


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            home = os.environ["PREFECT_HOME"]
            raise Unavailable(
                f"Prefect: its server ended with exit code {process.returncode}; is {home} "
                "writable and whole? (removing it loses only the history of runs)"
            )
        try:
            if requests.get(f"{address}/health", timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.1)
    raise Unavailable(f"Prefect: its server did not answer within {PATIENCE:.0f} s")


def main(descriptor: int) -> None:
    """Serve on an open socket until told to end or left alone."""
    end_with_keeper()
    import uvicorn
    from prefect.server.api.server import create_app

    application = create_app(ephemeral=True, final=True)
    settings = uvicorn.Config(application, log_level="critical", lifespan="on")
    uvicorn.Server(settings).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]))

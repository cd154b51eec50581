"""`prong ui`: MLflow's and Prefect's web pages on this machine, until the user stops it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import requests

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.systems import mlflow as tracking
from pipelines.systems.prefect.server import standing_server
from pipelines.systems.processes import end_group

HOST = "127.0.0.1"
PATIENCE = 120.0
"""Seconds that a server has to answer; on two busy cores it takes half a minute."""
_NEARBY = 50  # ports tried after the one asked for


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        name: The system that it belongs to.
        url: Its address.
        process: The server that was started for it; None if one was already running.
        log: The server's log file; None without a process.
    """

    name: str
    url: str
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None


def free_port(wanted: int, taken: tuple[int, ...] = ()) -> int:
    """Return `wanted`, or the next free port of this machine.

    Raises:
        UserError: If the number is not a port, or no port nearby is free.
    """
    if not 1 <= wanted <= 65535:
        raise UserError(f"port {wanted}: must be 1 to 65535")
    for port in range(wanted, min(wanted + _NEARBY, 65536)):
        with socket.socket() as probe:
            # As the servers do: a port that was closed a moment ago counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                if port not in taken:
                    return port
    raise UserError(f"port {wanted}: busy, and so are the {_NEARBY - 1} after it; choose another")


def _start(
    name: str, url: str, arguments: list[str], env: Mapping[str, str], layout: Layout
) -> Page:
    log = layout.state / "ui" / f"{name.lower()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=layout.root,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Page(name, url, process, log)


def _mlflow(layout: Layout, port: int) -> Page:
    uri = tracking.tracking_uri(layout)
    if uri.startswith(("http://", "https://")):
        return Page("MLflow", tracking.shown_uri(uri))
    tracking.connect(layout)  # makes a new database, or reports what is wrong with it
    command = ["mlflow", "server", "--workers", "1", "--host", HOST, "--port", str(port)]
    command += ["--backend-store-uri", uri]
    command += ["--default-artifact-root", tracking.artifact_root(layout)]
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return _start("MLflow", f"http://{HOST}:{port}", command, env, layout)


def _prefect(layout: Layout, port: int) -> Page:
    if url := os.environ.get("PREFECT_API_URL") or standing_server(layout):
        return Page("Prefect", tracking.shown_uri(url).removesuffix("/").removesuffix("/api"))
    home = os.environ.get("PREFECT_HOME", str(layout.state / "prefect"))
    env = {"PREFECT_HOME": home, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
    return _start("Prefect", f"http://{HOST}:{port}", command, env, layout)


_HEALTH = {"MLflow": "/health", "Prefect": "/api/health"}


def _wait(page: Page, patience: float) -> None:
    """Return once a started server answers.

    Raises:
        Unavailable: If it ends or does not answer, with the last lines of its log.
    """
    if page.process is None or page.log is None:
        return
    process, health = page.process, page.url + _HEALTH[page.name]
    with requests.Session() as session:
        session.trust_env = False  # no proxy is needed on loopback

        def answers() -> bool:
            try:
                return session.get(health, timeout=5).ok
            except requests.RequestException:
                return False

        done = wait_until(lambda: answers() or process.poll() is not None, patience, pause=0.2)
        if done and process.poll() is None:
            return
    ended = process.poll()
    what = "does not answer" if ended is None else f"ended with exit code {ended}"
    said = page.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
    raise Unavailable("\n".join([f"{page.name}'s server {what}; {page.log} ends with:", *said]))


@contextmanager
def pages(layout: Layout, *, mlflow_port: int, prefect_port: int) -> Iterator[tuple[Page, Page]]:
    """Yield both pages once they answer; end the servers started for them afterwards.

    If `MLFLOW_TRACKING_URI` or `PREFECT_API_URL` names a server, it is shown and none is started.

    Args:
        layout: The checkout, whose stores are shown.
        mlflow_port: On loopback; if it is busy, the next free one.
        prefect_port: Likewise.

    Raises:
        UserError: If a port or the tracking store cannot be used.
        Unavailable: If a server does not start.
    """
    with ExitStack() as stack:

        def keep(page: Page) -> Page:
            if page.process is not None:
                stack.callback(end_group, page.process)
            return page

        port = free_port(mlflow_port)
        found = (
            keep(_mlflow(layout, port)),
            keep(_prefect(layout, free_port(prefect_port, (port,)))),
        )
        for started in found:
            _wait(started, PATIENCE)
        yield found


def _ended(signum: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


def serve_pages(layout: Layout, *, mlflow_port: int, prefect_port: int) -> None:
    """Print where both pages are, and keep them until Ctrl-C, SIGTERM or SIGHUP.

    Args:
        layout: The checkout, whose stores are shown.
        mlflow_port: On loopback; if it is busy, the next free one.
        prefect_port: Likewise.

    Raises:
        UserError: If a port or the tracking store cannot be used.
        Unavailable: If a server does not start, or ends unexpectedly.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    with suppress(KeyboardInterrupt):
        print("starting …", file=sys.stderr, flush=True)
        with pages(layout, mlflow_port=mlflow_port, prefect_port=prefect_port) as shown:
            for page in shown:
                note = "" if page.process else "   (already running, named in the environment)"
                print(f"{page.name:<8} {page.url}{note}", flush=True)
            started = [page for page in shown if page.process is not None]
            if not started:
                return
            print("Ctrl-C ends what was started", file=sys.stderr, flush=True)
            while True:
                for page in started:
                    if page.process is not None and page.process.poll() is not None:
                        _wait(page, 0.0)  # reports that it ended, with the end of its log
                time.sleep(0.5)

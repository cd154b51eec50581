"""`prong ui`: MLflow's and Prefect's web pages on this machine, until the user stops it.

Both ask for a secret, for every user of the machine can connect to them (`systems/secrets.py`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import requests

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.systems import mlflow as tracking
from pipelines.systems.loopback import listen
from pipelines.systems.mlflow import web_server as mlflow_server
from pipelines.systems.prefect import server as prefect_server
from pipelines.systems.processes import end_group
from pipelines.systems.secrets import USER, secret_file

PATIENCE = 120.0
"""Seconds that a server has to answer; on two busy cores it takes half a minute."""
_NEARBY = 50  # ports tried, with the one asked for


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        name: The system that it belongs to.
        url: Its address.
        note: What to know about it: how to log in, or who runs it.
        process: The server that was started for it; None if one was already running.
        log: The server's log file; None without a process.
    """

    name: str
    url: str
    note: str
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None


def listen_near(wanted: int) -> socket.socket:
    """Return a socket that listens on a port, or on the next free one of this machine.

    It is handed to the server: between a look for a free port and its use another user could
    take it, and would be told the secret.

    Raises:
        UserError: If the number is not a port, or no port nearby is free.
    """
    if not 1 <= wanted <= 65535:
        raise UserError(f"port {wanted}: must be 1 to 65535")
    try:
        return listen(wanted, _NEARBY)
    except OSError as error:
        raise UserError(
            f"port {wanted}: busy, and so are the {_NEARBY - 1} after it; choose another "
            f"({error.strerror})"
        ) from None


@contextmanager
def _log(layout: Layout, name: str) -> Iterator[tuple[Path, IO[bytes]]]:
    path = layout.state / "ui" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        yield path, file


_NAMED = "already running, named in the environment"


def _mlflow(layout: Layout, port: int) -> Page:
    uri = tracking.tracking_uri(layout)
    if uri.startswith(("http://", "https://")):
        return Page("MLflow", tracking.shown_uri(uri), _NAMED)
    tracking.connect(layout)  # makes a new database, or reports what is wrong with it
    with listen_near(port) as listener, _log(layout, "mlflow") as (path, log):
        process, url = mlflow_server.start(layout, listener, log)
    login = f"user {USER}, password: the line in {secret_file(layout, 'mlflow')}"
    return Page("MLflow", url, login, process, path)


def _prefect(layout: Layout, port: int) -> Page:
    if url := os.environ.get("PREFECT_API_URL"):
        return Page("Prefect", _page_of(tracking.shown_uri(url)), _NAMED)
    login = f"password: the line in {secret_file(layout, 'prefect')}"
    if url := prefect_server.standing_server(layout):
        return Page("Prefect", _page_of(url), f"{login}; it is the worker's")
    with listen_near(port) as listener, _log(layout, "prefect") as (path, log):
        process, url = prefect_server.start(layout, listener, "scheduling", log)
    return Page("Prefect", _page_of(url), login, process, path)


def _page_of(api: str) -> str:
    return api.removesuffix("/").removesuffix("/api")


_HEALTH = {"MLflow": mlflow_server.HEALTH, "Prefect": "/api/health"}


def _wait(page: Page, patience: float) -> None:
    """Return once a started server answers.

    Raises:
        Unavailable: If it ends or does not answer, with the last lines of its log.
    """
    if page.process is None or page.log is None:
        return
    process, health = page.process, page.url + _HEALTH[page.name]
    with requests.Session() as session:
        session.trust_env = False  # no proxy is needed on loopback, nor a password of ~/.netrc

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

        found = (keep(_mlflow(layout, mlflow_port)), keep(_prefect(layout, prefect_port)))
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
                print(f"{page.name:<8} {page.url}   ({page.note})", flush=True)
            started = [page for page in shown if page.process is not None]
            if not started:
                return
            print("Ctrl-C ends what was started", file=sys.stderr, flush=True)
            while True:
                for page in started:
                    if page.process is not None and page.process.poll() is not None:
                        _wait(page, 0.0)  # reports that it ended, with the end of its log
                time.sleep(0.5)

"""The Prefect servers of a checkout: on loopback, in its own store, gone with who started them.

Prefect would start one for a run by itself, but leaves it behind when the run is killed, and lets
every user of the machine use it. These watch their parent, ask for the checkout's secret, and come
up while the run still imports what it needs. A worker's server also makes the scheduled runs, and
is used by every other command of the checkout while it is there.
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
from typing import IO, Literal

import requests

from pipelines.core.errors import Unavailable
from pipelines.core.files import write_json
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.systems.loopback import Guard, listen, origins, port_of, serve
from pipelines.systems.processes import end_group, end_with_keeper, kept, process_start
from pipelines.systems.secrets import secret

Kind = Literal["brief", "scheduling"]

PATIENCE = 120.0
"""Seconds for the server to answer; two busy cores need a quarter of a minute."""
PORT = 4200
"""Where a worker's server listens if it can; else on any free port."""
_URL = "PREFECT_API_URL"
_AUTH = "PREFECT_API_AUTH_STRING"


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
        UserError: If another user owns or may read the checkout's secret.
        Unavailable: From that function, if the server ends or does not answer.
    """
    if _URL in os.environ or _named_by_users_home(layout):
        yield lambda: None
        return
    address = standing_server(layout)
    if address is not None:
        with _used(layout, address):
            yield lambda: None
        return
    with _served(layout, 0, "brief") as (process, address):
        yield lambda: _wait(process, address)


def _named_by_users_home(layout: Layout) -> bool:
    """Say whether a Prefect home of the user's own names a server.

    If a file might, Prefect is asked, which takes seconds; in another process, as in this one it
    would keep for good what it reads now.
    """
    home = os.environ.get("PREFECT_HOME", "")
    if home in ("", str(layout.state / "prefect")):
        return False
    profiles = os.environ.get("PREFECT_PROFILES_PATH") or f"{home}/profiles.toml"
    files = [Path(profiles), layout.root / ".env", layout.root / "prefect.toml"]
    texts = [file.read_text() for file in map(Path.expanduser, files) if file.is_file()]
    if not any("url" in text.lower() for text in texts):
        return False
    program = "import prefect.settings as s; print(s.get_current_settings().api.url or '')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=layout.root, capture_output=True, check=False
    )
    return bool(done.stdout.strip()) or done.returncode != 0  # what is wrong with it shows later


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


@contextmanager
def _used(layout: Layout, address: str) -> Iterator[None]:
    """Let this process and those it starts use a server of the checkout; afterwards as before."""
    wanted = {_URL: address, _AUTH: secret(layout, "prefect")}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _served(layout: Layout, port: int, kind: Kind) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    try:
        listener = listen(port)
    except OSError:  # busy: another checkout's worker, or `prong ui`
        listener = listen(0)
    with listener:
        process, address = start(layout, listener, kind)
    try:
        with _used(layout, address):
            yield process, address
    finally:
        end_group(process)


def start(
    layout: Layout, listener: socket.socket, kind: Kind, output: IO[bytes] | None = None
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server that ends with this process at the latest.

    Args:
        layout: The checkout whose secret it asks for.
        listener: Where it listens.
        kind: `brief` serves one run; `scheduling` also makes and watches scheduled runs.
        output: What it prints goes there; None: nowhere.

    Returns:
        Its process, and the address of its API.
    """
    port = port_of(listener)
    address = f"http://127.0.0.1:{port}/api"
    asked = secret(layout, "prefect")
    home = os.environ.get("PREFECT_HOME") or str(layout.state / "prefect")
    Path(home).mkdir(parents=True, exist_ok=True)
    settings = {
        "PREFECT_HOME": home,
        _URL: address,
        _AUTH: asked,
        "PREFECT_SERVER_API_AUTH_STRING": asked,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins(port)),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.systems.prefect.server", str(listener.fileno()), kind],
        cwd=layout.root,
        env=kept({"PREFECT_SERVER_ANALYTICS_ENABLED": "false", **os.environ, **settings}),
        pass_fds=(listener.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=output or subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return process, address


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    with requests.Session() as session:
        session.trust_env = False  # no proxy is needed on loopback, and no credentials of ~/.netrc

        def answers() -> bool:
            if process.poll() is not None:
                raise Unavailable(
                    f"Prefect: its server ended with exit code {process.returncode}; is "
                    f"{os.environ.get('PREFECT_HOME', 'its home')} writable and whole? (removing "
                    "it loses only the history of runs)"
                )
            try:
                return session.get(f"{address}/health", timeout=2).ok
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
    from prefect.server.api.server import create_app

    listener = socket.socket(fileno=descriptor)
    application = create_app(ephemeral=kind == "brief", final=True)
    # Prefect asks for the secret by itself, in a way that its page knows.
    serve(Guard(application, port_of(listener), credentials=None), listener, "error")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

"""`prong worker`: takes scheduled runs in the foreground, with a server of its own if need be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.config import Params
from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.core.text import shown
from pipelines.systems.locks import locked
from pipelines.systems.prefect.server import scheduling_server
from pipelines.systems.processes import end_group, exit_on_sigterm, kept, process_start

if TYPE_CHECKING:
    from pipelines.scheduling.run_news import RunNews

_LISTEN = 5.0
"""Seconds between looks for runs that began or ended."""
_LATEST = 20  # runs looked at each time
_LOOK = 30.0
"""Seconds between looks for runs whose process died."""
_GRACE = 25.0
"""Seconds for a run at work to end its training when the worker is told to end."""


def _lock(layout: Layout) -> Path:
    return layout.state / "worker.lock"


@contextmanager
def _only_worker(layout: Layout) -> Iterator[None]:
    """Keep a second worker out of this checkout; the lock goes with the process.

    Raises:
        UserError: If there is one already.
    """
    try:
        with locked(_lock(layout), patience=0) as file:
            file.truncate(0)
            file.write(f"{os.getpid()} {process_start(os.getpid())}")
            file.flush()
            yield
    except BlockingIOError:
        raise UserError(
            f"a worker runs in this checkout already (process {_signature(layout)[0]}); one is "
            "allowed: end it first, or start this one in another checkout"
        ) from None


def _signature(layout: Layout) -> tuple[str, str]:
    """Return process id and start of the last worker of a checkout."""
    try:
        pid, _, start = _lock(layout).read_text(encoding="utf-8").strip().partition(" ")
    except (FileNotFoundError, UnicodeDecodeError):
        return "", ""
    return pid, start


def working(layout: Layout) -> int | None:
    """Return the process id of the checkout's worker on this machine, if there is one."""
    pid, start = _signature(layout)
    alive = pid.isdecimal() and start and process_start(int(pid)) == start
    return int(pid) if alive else None


def serve(layout: Layout, params: Params, pool: str) -> None:
    """Take scheduled runs until Ctrl-C or SIGTERM, then end everything that was started.

    Args:
        layout: The checkout.
        params: Its parameters.
        pool: The work pool to take runs from.

    Raises:
        UserError: If another worker is there, or the pool is not one of processes.
        Unavailable: If the server does not answer, or a process ends by itself.
    """
    exit_on_sigterm()
    with suppress(KeyboardInterrupt), _only_worker(layout):
        print("starting …", file=sys.stderr, flush=True)
        with scheduling_server(layout) as (address, server):
            _prepare(layout, params, pool)
            with _polling(layout, pool) as poller:
                note = "" if server else "   (by PREFECT_API_URL)"
                print(f"Prefect  {_shown(address)}{note}", flush=True)
                print(f"pool     {pool}; Ctrl-C ends the worker", flush=True)
                _watch(layout, params, poller, server)


def _shown(address: str) -> str:
    from pipelines.scheduling.alerts import shown

    return shown(address.removesuffix("/").removesuffix("/api"))


def _prepare(layout: Layout, params: Params, pool: str) -> None:
    from pipelines.scheduling.deployment import ensure_pool
    from pipelines.systems.prefect.connection import api
    from pipelines.systems.prefect.deployed_flows import PROCESS

    with api() as client:
        kind = ensure_pool(client, pool)
    if kind != PROCESS:
        raise UserError(
            f"--pool {pool!r}: of type {kind}; allowed: pools of type {PROCESS}. "
            f"`prefect worker start --pool {pool}` serves others"
        )
    look_after(layout, params)


@contextmanager
def _polling(layout: Layout, pool: str) -> Iterator[subprocess.Popen[bytes]]:
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.systems.prefect.polling", pool],
        cwd=layout.root,
        env=kept({**os.environ, "PATH": path}),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_group(process, _GRACE)


def _watch(
    layout: Layout,
    params: Params,
    poller: subprocess.Popen[bytes],
    server: subprocess.Popen[bytes] | None,
) -> None:
    from pipelines.scheduling.run_news import RunNews

    news = RunNews(datetime.now(UTC))
    look = _Every(_LOOK, time.monotonic())
    listen = _Every(_LISTEN, -_LISTEN)
    while True:
        for name, process in (("the worker", poller), ("Prefect's server", server)):
            code = process.poll() if process else None
            if code is not None:
                raise Unavailable(f"{name} ended by itself with exit code {code}; start it again")
        try:
            if look.due():
                look_after(layout, params)
            if listen.due():
                report(layout, news)
        except Unavailable as error:  # a server elsewhere may come back
            print(f"{shown(error)}; looking again in {_LOOK:.0f} s", file=sys.stderr, flush=True)
            listen.wait(_LOOK)
        time.sleep(0.5)


class _Every:
    """Says when something is to be done again.

    Args:
        seconds: Between two times.
        last: When it was done last, on the monotonic clock.
    """

    def __init__(self, seconds: float, last: float) -> None:
        self._seconds, self._next = seconds, last + seconds

    def due(self) -> bool:
        """Say whether it is time; if so, the next time is as many seconds later."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True

    def wait(self, seconds: float) -> None:
        """Let so many seconds pass before the next time."""
        self._next = time.monotonic() + seconds


def report(layout: Layout, news: RunNews) -> None:
    """Print which runs began and ended since the last call, and when the next ones are due.

    Raises:
        Unavailable: If the server does not answer.
    """
    from pipelines.scheduling import past_runs
    from pipelines.systems.prefect.connection import api

    with api() as client:
        mine = past_runs.deployments(client, layout)
        names = {one.id: one.name for one in mine}
        runs = past_runs.latest_scheduled(client, names, _LATEST)
    next_runs = [past_runs.next_run(one) for one in mine]
    for line in news.lines(runs, next_runs, datetime.now(UTC)):
        print(line, flush=True)


def look_after(layout: Layout, params: Params) -> None:
    """Close the runs whose process died, begin the newest of each deployment again, and say so.

    Runs that were started by hand are closed as well.

    Raises:
        Unavailable: If the server does not answer.
    """
    from pipelines.scheduling import alerts
    from pipelines.scheduling.flow_runs import close_dead
    from pipelines.scheduling.past_runs import deployments
    from pipelines.systems.prefect.connection import api
    from pipelines.systems.prefect.decorators import MAIN_JOB
    from pipelines.systems.prefect.signed_runs import close_lost

    with api() as client:
        mine = deployments(client, layout)
        by_hand = close_lost(client, (MAIN_JOB,), str(layout.home))
        found = [
            (one.name, run) for one in mine for run in close_dead(client, one.id, begin_again=True)
        ]
    for closed, reason in by_hand:
        _say(f"by hand  {closed.name}  closed: {reason}")
    for name, run in found:
        what = "begun again" if run.again else "closed"
        _say(f"{name}  {run.name}  {what}: {run.reason}")
        if not run.again:
            alert = alerts.Alert(
                "failed", name, run.run_id, run.scheduled.isoformat(), run.reason, params.model_name
            )
            alerts.send(params.alerts, alert)


def _say(line: str) -> None:
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {shown(line)}", flush=True)

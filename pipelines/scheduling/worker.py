"""`prong worker`: takes scheduled runs in the foreground, with a server of its own if need be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipelines.core.config import Params
from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.systems.locks import locked
from pipelines.systems.prefect.server import scheduling_server
from pipelines.systems.processes import end_group, exit_on_sigterm, kept

_LOOK = 30.0
"""Seconds between looks for runs whose process died."""
_GRACE = 25.0
"""Seconds for a run at work to end its training when the worker is told to end."""


@contextmanager
def _only_worker(layout: Layout) -> Iterator[None]:
    """Keep a second worker out of this checkout; the lock goes with the process.

    Raises:
        UserError: If there is one already.
    """
    path = layout.state / "worker.lock"
    try:
        with locked(path, patience=0) as file:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
    except BlockingIOError:
        raise UserError(
            f"a worker runs in this checkout already (process {path.read_text().strip()}); one is "
            "allowed: end it first, or start this one in another checkout"
        ) from None


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
    looked = time.monotonic()
    while True:
        for name, process in (("the worker", poller), ("Prefect's server", server)):
            code = process.poll() if process else None
            if code is not None:
                raise Unavailable(f"{name} ended by itself with exit code {code}; start it again")
        if time.monotonic() - looked > _LOOK:
            try:
                look_after(layout, params)
            except Unavailable as error:  # a server elsewhere may come back
                print(f"{error}; looking again in {_LOOK:.0f} s", file=sys.stderr, flush=True)
            looked = time.monotonic()
        time.sleep(0.5)


def look_after(layout: Layout, params: Params) -> None:
    """Close the runs whose process died, begin the newest of each deployment again, and say so.

    Raises:
        Unavailable: If the server does not answer.
    """
    from pipelines.scheduling import alerts
    from pipelines.scheduling.deployment import FLOW
    from pipelines.scheduling.flow_runs import close_dead
    from pipelines.systems.prefect.connection import api
    from pipelines.systems.prefect.deployed_flows import deployments_of, root_of

    with api() as client:
        mine = [one for one in deployments_of(client, FLOW) if root_of(one) == str(layout.root)]
        found = [
            (one.name, run) for one in mine for run in close_dead(client, one.id, begin_again=True)
        ]
    for name, run in found:
        what = "begun again" if run.again else "closed"
        print(f"{name}: run {run.run_id} {what}: {run.reason}", flush=True)
        if not run.again:
            alert = alerts.Alert(
                "failed", name, run.run_id, run.scheduled.isoformat(), run.reason, params.model_name
            )
            alerts.send(params.alerts, alert)

"""Runs that say which process executes them, so that others can tell when it is gone.

Prefect itself leaves the run of a killed process RUNNING for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.context import SettingsContext, get_settings_context
from prefect.exceptions import ObjectNotFound

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.systems.liveness import HEARTBEAT, STALE, START, dead, gone, identity
from pipelines.systems.prefect import run_records
from pipelines.systems.prefect.connection import api
from pipelines.systems.prefect.run_records import AT_WORK, FlowRun, StateType

CHECKOUT = "prong.checkout"
"""Label: the folder of the checkout that a run belongs to."""
CAME_OF = "prong.came_of"
"""Label: what came of a run, in one line."""
_BEAT = 60.0
_UNSIGNED = 5 * 60.0
"""Seconds in which a worker brings a process to the point where it signs its run."""
_NEVER_SIGNED = 24 * 3600.0
"""Seconds after which a run that was not signed at all counts as dead."""
_LONGEST = 500


def checkout() -> str:
    """Return the checkout of the working directory, whose stores are used; empty outside one."""
    try:
        return str(Layout.find().home)
    except UserError:
        return ""


def sign(client: SyncPrefectClient, run_id: UUID) -> None:
    """Write onto a run which process executes it, and for which checkout."""
    run_records.label(client, run_id, {**identity(), CHECKOUT: checkout()})


def unsign(client: SyncPrefectClient, run_id: UUID) -> None:
    """Take the signature off a run that another process is to execute."""
    run_records.label(client, run_id, {START: ""})


def why_lost(run: FlowRun, never_signed: float | None = None) -> str:
    """Return why a run that counts as being at work has no process, or nothing.

    Args:
        run: As the server has it.
        never_signed: Seconds for a run that nobody signed; None: as long as a worker needs to
            start a process, and as a silent process is waited for.
    """
    state = run.state
    if state is None or state.type not in AT_WORK:
        return ""
    signed = {key: str(value) for key, value in run.labels.items()}
    if signed.get(START):
        try:
            who = f"process {signed['prong.pid']} on {signed['prong.host']}"
            return f"{who} is gone" if dead(signed) else ""
        except (KeyError, ValueError):
            return "its signature is damaged"
    age = (datetime.now(UTC) - state.timestamp).total_seconds()
    limit = _UNSIGNED if state.type is StateType.PENDING else STALE
    return "no process took it up" if age > (never_signed or limit) else ""


def close_lost(
    client: SyncPrefectClient, flows: tuple[str, ...], here: str, but: str = ""
) -> list[tuple[FlowRun, str]]:
    """Crash the runs of a checkout whose process is gone; one query where there are none.

    Args:
        client: Of the server.
        flows: Names of the flows to look at.
        here: The checkout. On a shared server those of others are left alone, unless their process
            ran on this machine and is certainly gone.
        but: Id of a run to leave alone.

    Returns:
        Each run that was closed, with the reason.
    """
    closed = []
    for run in run_records.runs_at_work(client, flows):
        reason = why_lost(run, _NEVER_SIGNED)
        if reason and str(run.id) != but and (_of(run, here) or _certainly_gone(run)):
            run_records.crash(client, run.id, reason)
            closed.append((run, reason))
    return closed


def _of(run: FlowRun, here: str) -> bool:
    return str(run.labels.get(CHECKOUT) or here) == here


def _certainly_gone(run: FlowRun) -> bool:
    try:
        return gone({key: str(value) for key, value in run.labels.items()})
    except (KeyError, ValueError):
        return False


@contextmanager
def signs_of_life(
    run_id: str, flows: tuple[str, ...] = (), interval: float = _BEAT
) -> Iterator[Callable[[str], None]]:
    """Sign a run, and say every `interval` seconds that its process lives.

    All of it happens beside the block, which waits for no answer; a silent server does no harm.

    Args:
        run_id: Prefect's id of the run that this process executes.
        flows: Flows whose dead runs are closed.
        interval: Seconds.

    Yields:
        A function that takes what came of the run, in one line, to be written onto it at the end.
    """
    ending = threading.Event()
    last: list[str] = []

    def beat() -> None:
        me = UUID(run_id)
        begun = _tell(lambda client: _begin(client, me, flows))
        while not ending.wait(interval):
            if begun:
                _tell(lambda client: run_records.label(client, me, _now()))
            else:
                begun = _tell(lambda client: _begin(client, me, flows))
        if last:
            said = {CAME_OF: last[-1][:_LONGEST]}
            _tell(lambda client: run_records.label(client, me, said))

    here = get_settings_context()

    def beat_at_the_same_server() -> None:
        with SettingsContext(profile=here.profile, settings=here.settings):
            beat()

    thread = threading.Thread(target=beat_at_the_same_server, name="signs-of-life", daemon=True)
    thread.start()
    try:
        yield last.append
    finally:
        ending.set()
        thread.join()


def _now() -> dict[str, str]:
    return {HEARTBEAT: f"{time.time():.0f}"}


def _begin(client: SyncPrefectClient, run_id: UUID, flows: tuple[str, ...]) -> None:
    sign(client, run_id)
    close_lost(client, flows, checkout(), str(run_id))


def _tell(what: Callable[[SyncPrefectClient], object]) -> bool:
    """Tell the server something; return whether it took it. The next beat may succeed."""
    try:
        with api() as client:
            what(client)
    except (Unavailable, ObjectNotFound):  # the second: the run was deleted on the server's page
        return False
    return True

"""Prefect's record of scheduled runs: read, signed, closed when dead, and begun again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pipelines.scheduling.rules import Due, Phase, to_begin_again
from pipelines.systems.prefect import run_records, signed_runs
from pipelines.systems.prefect.connection import SyncPrefectClient
from pipelines.systems.prefect.run_records import FlowRun, StateType
from pipelines.systems.prefect.signed_runs import CAME_OF

SKIPPED = "Skipped"
"""Name of the state of a run in whose place another works."""
NOTHING_NEW = "Nothing new"
"""Name of the state of a run that found its training done."""
_LOOKS_BACK = timedelta(days=7)
_CLOSED = "prong.closed"  # label: why a run is not begun again
_LONGEST = 500


@dataclass(frozen=True)
class Closed:
    """A run whose process was gone.

    Attributes:
        run_id: Prefect's id.
        name: Prefect's name for it, two words.
        scheduled: The time it was made for.
        again: Whether it is begun again.
        reason: Why it was closed, in one line.
    """

    run_id: str
    name: str
    scheduled: datetime
    again: bool
    reason: str


def recent(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    """Return the runs of a deployment that were due in the last week, latest first."""
    return run_records.runs_due_within(client, deployment, _LOOKS_BACK)


def due(run: FlowRun) -> Due:
    """Return a run as the rules see it."""
    return Due(str(run.id), run.expected_start_time or datetime.now(UTC), _phase(run))


def _phase(run: FlowRun) -> Phase:
    state = run.state
    if state is None or state.type in (StateType.SCHEDULED, StateType.PENDING, StateType.PAUSED):
        return "waiting"
    if state.type in (StateType.RUNNING, StateType.CANCELLING):
        return "running"
    # One that crashed has not done what it was for.
    gave_up = state.type in (StateType.CANCELLED, StateType.CRASHED)
    return "skipped" if gave_up else "done"


def skip(client: SyncPrefectClient, run_ids: Iterable[str], reason: str) -> None:
    """Mark waiting runs as skipped."""
    for run_id in run_ids:
        run_records.cancel(client, UUID(run_id), reason, SKIPPED)


def _lost(run: FlowRun) -> str:
    """Return why a run counts as dead, or nothing."""
    state = run.state
    if state is not None and state.type is StateType.CRASHED:
        return f"crashed: {state.message or 'its process ended'}"
    return signed_runs.why_lost(run)


def close_dead(
    client: SyncPrefectClient, deployment: UUID, *, but: str = "", begin_again: bool
) -> list[Closed]:
    """Close the runs of a deployment whose process is gone, and begin the newest again.

    Args:
        client: Of the server.
        deployment: Its id.
        but: A run to leave alone: the one that asks.
        begin_again: Whether to; a run that asks does the work itself.

    Returns:
        What was closed or begun again now; each closing is told once.
    """
    runs = [run for run in recent(client, deployment) if str(run.id) != but]
    lost = {str(run.id): (run, reason) for run in runs if (reason := _lost(run))}
    alive = [due(run) for run in runs if str(run.id) not in lost]
    again = None
    if begin_again:
        again = to_begin_again([(due(run), run.run_count) for run, _ in lost.values()], alive)
    closed = []
    for run_id, (run, reason) in lost.items():
        crashed = run.state is not None and run.state.type is StateType.CRASHED
        if not crashed:
            run_records.crash(client, run.id, reason)
        if run_id == again:
            _begin_again(client, run, reason)
        elif crashed and run.labels.get(_CLOSED):
            continue  # said before
        else:
            run_records.label(client, run.id, {_CLOSED: reason[:_LONGEST]})
        closed.append(Closed(run_id, run.name, due(run).scheduled, run_id == again, reason))
    return closed


def _begin_again(client: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    # Unsigned first: the old signature would make the new attempt look dead.
    signed_runs.unsign(client, run.id)
    run_records.label(client, run.id, {_CLOSED: "", CAME_OF: ""})
    run_records.schedule_again(client, run.id, f"begun again: {reason}")

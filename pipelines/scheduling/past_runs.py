"""What was run and what is due, read from Prefect's record for those who look after a checkout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from pipelines.core.paths import Layout
from pipelines.systems.prefect import deployed_flows, run_records
from pipelines.systems.prefect.connection import SyncPrefectClient
from pipelines.systems.prefect.decorators import DEPLOYED, FLOWS
from pipelines.systems.prefect.deployed_flows import DeploymentResponse
from pipelines.systems.prefect.run_records import FlowRun
from pipelines.systems.prefect.schedules import next_fire
from pipelines.systems.prefect.signed_runs import CAME_OF, CHECKOUT, why_lost

_EXCEPTION = "Flow run encountered an exception: "
_LOOKED_AT = 100
"""Latest runs that are asked for; on a shared server most may be of other checkouts."""


@dataclass(frozen=True)
class PastRun:
    """One run of the main job, by hand or scheduled, that has begun.

    Attributes:
        run_id: Prefect's id.
        name: Prefect's name for it, two words.
        deployment: Whose run it is; empty if it was started by hand.
        attempt: 1, or more if it was begun again.
        began: When.
        seconds: How long it took; None while it is at work.
        outcome: The name of its state in lower case; `lost` if it counts as being at work and its
            process is gone.
        came_of: What came of it, in one line, such as `v3 champion`; may be empty.
    """

    run_id: str
    name: str
    deployment: str
    attempt: int
    began: datetime
    seconds: float | None
    outcome: str
    came_of: str


@dataclass(frozen=True)
class NextRun:
    """When a deployment runs next.

    Attributes:
        deployment: Its name.
        due: When; None if it is paused, or its schedules were not made by `prong schedule`.
        note: Its schedule in words.
    """

    deployment: str
    due: datetime | None
    note: str


def deployments(client: SyncPrefectClient, layout: Layout) -> list[DeploymentResponse]:
    """Return the deployments of a checkout, by name."""
    root = str(layout.root)
    found = (one for flow in DEPLOYED for one in deployed_flows.deployments_of(client, flow))
    return sorted(
        (one for one in found if deployed_flows.root_of(one) == root), key=lambda one: one.name
    )


def next_run(found: DeploymentResponse) -> NextRun:
    """Return when a deployment runs next, by its schedule."""
    fires = deployed_flows.cron_of(found)
    if fires is None:
        return NextRun(found.name, None, "schedules not made by prong schedule: see prong ui")
    schedule, active = fires
    note = f"{schedule.cron} {schedule.timezone or 'UTC'}"
    if found.paused or not active:
        return NextRun(found.name, None, f"{note}, paused")
    return NextRun(found.name, next_fire(schedule), note)


def latest(
    client: SyncPrefectClient, layout: Layout, names: Mapping[UUID, str], most: int
) -> list[PastRun]:
    """Return the runs of a checkout that began last, the latest first.

    Args:
        client: Of the server.
        layout: The checkout.
        names: The names of its deployments, by id.
        most: How many runs to return.
    """
    found = run_records.latest_runs(client, FLOWS, _LOOKED_AT)
    return [_past(run, names) for run in _of_checkout(found, layout, names)[:most]]


def latest_scheduled(
    client: SyncPrefectClient, names: Mapping[UUID, str], most: int
) -> list[PastRun]:
    """Return the runs of deployments that began last, the latest first.

    Args:
        client: Of the server.
        names: The names of the deployments, by id.
        most: How many runs to return.
    """
    found = run_records.latest_runs(client, FLOWS, most, names) if names else []
    return [_past(run, names) for run in found]


def _of_checkout(
    runs: Sequence[FlowRun], layout: Layout, names: Mapping[UUID, str]
) -> list[FlowRun]:
    here = str(layout.home)

    def ours(run: FlowRun) -> bool:
        if run.deployment_id is not None:
            return run.deployment_id in names
        return str(run.labels.get(CHECKOUT) or here) == here

    return [run for run in runs if ours(run)]


def _past(run: FlowRun, names: Mapping[UUID, str]) -> PastRun:
    state, lost = run.state, why_lost(run)
    began = run.start_time or run.created or datetime.now(UTC)
    message = (state.message or "").removeprefix(_EXCEPTION) if state else ""
    label = str(run.labels.get(CAME_OF) or "")
    return PastRun(
        run_id=str(run.id),
        name=run.name,
        deployment=names.get(run.deployment_id, "") if run.deployment_id else "",
        attempt=run.run_count,
        began=began,
        seconds=run.total_run_time.total_seconds() if run.end_time else None,
        outcome="lost" if lost else (state.name or state.type.value).lower() if state else "",
        came_of=lost or label or message,
    )

"""`prong schedule`: the deployment that runs the main job at given times."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.scheduling import cron
from pipelines.scheduling.flow_runs import api

FLOW = "scheduled"
ENTRYPOINT = "pipelines/scheduling/flow.py:scheduled"
NAME, POOL = "retrain", "prong"
"""What a deployment and its work pool are called unless told otherwise; as in prefect.yaml."""
COMMAND = "-m pipelines.scheduling.engine"


@dataclass(frozen=True)
class Plan:
    """One deployment, as it is to be or as it is.

    Attributes:
        name: Of the deployment.
        cron: When, five fields.
        timezone: IANA name in which `cron` is read.
        pool: Work pool whose workers run it.
        paused: Whether it fires at all.
        root: The checkout it runs.
    """

    name: str
    cron: str
    timezone: str
    pool: str
    paused: bool
    root: str


def _found(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(f"{FLOW}/{name}")
    except ObjectNotFound:
        return None


def _plan(found: DeploymentResponse) -> Plan | None:
    """Return what a deployment does, or None if it has not exactly one cron schedule."""
    times = [one for one in found.schedules if isinstance(one.schedule, CronSchedule)]
    if len(found.schedules) != 1 or not times:
        return None
    (one,) = times
    assert isinstance(one.schedule, CronSchedule)
    return Plan(
        name=found.name,
        cron=one.schedule.cron,
        timezone=one.schedule.timezone or "UTC",
        pool=found.work_pool_name or "",
        paused=found.paused or not one.active,
        root=root_of(found),
    )


def root_of(found: DeploymentResponse) -> str:
    """Return the checkout that a deployment runs; `prefect deploy` leaves its path empty."""
    return str(found.job_variables.get("working_dir") or found.path or "")


def deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """Return the deployments of the entry flow, by name."""
    flows = FlowFilter(name=FlowFilterName(any_=[FLOW]))
    return sorted(client.read_deployments(flow_filter=flows), key=lambda one: one.name)


def ensure_pool(client: SyncPrefectClient, pool: str, asked: str = "--pool") -> str:
    """Return the type of a work pool; the default one is made if it is absent.

    Raises:
        UserError: If another one does not exist.
    """
    known = {one.name: one.type for one in client.read_work_pools()}
    if pool in known:
        return known[pool]
    if pool != POOL:
        there = ", ".join(sorted({POOL, *known}))
        raise UserError(
            f"{asked} {pool!r}: there is no such work pool; allowed: {there}, or one made first by "
            "`prefect work-pool create`"
        )
    template = ProcessWorker.get_default_base_job_template()
    client.create_work_pool(
        WorkPoolCreate(name=pool, type=ProcessWorker.type, base_job_template=template)
    )
    return ProcessWorker.type


def _job(layout: Layout, kind: str) -> dict[str, Any]:
    """Return what a pool's jobs are to be started with; images bring their own command."""
    if kind != ProcessWorker.type:
        return {}
    return {"command": f"{sys.executable} {COMMAND}", "working_dir": str(layout.root)}


def deploy(layout: Layout, name: str, schedule: CronSchedule, pool: str) -> tuple[Plan, bool]:
    """Make or change a deployment so that it fires at given times, and let it fire.

    Args:
        layout: The checkout that it runs.
        name: Of the deployment.
        schedule: When.
        pool: Work pool; the default one is made if it is absent.

    Returns:
        What the deployment does from now on, and whether anything had to change.

    Raises:
        UserError: If the name is wrong or the pool does not exist.
        Unavailable: If the server does not answer.
    """
    cron.check_name("--name", name)
    timezone = schedule.timezone or "UTC"
    wanted = Plan(name, schedule.cron, timezone, pool, False, str(layout.root))
    with api() as client:
        kind = ensure_pool(client, pool)
        before = _found(client, name)
        job = _job(layout, kind)
        same = before is not None and before.job_variables == job
        if before is not None and same and _plan(before) == wanted:
            return wanted, False
        client.create_deployment(
            flow_id=client.create_flow_from_name(FLOW),
            name=name,
            schedules=[DeploymentScheduleCreate(schedule=schedule, active=True, slug="cron")],
            description="Runs the main job when there is something new.",
            work_pool_name=pool,
            path=str(layout.root),
            entrypoint=ENTRYPOINT,
            pull_steps=_pull(layout.root) if kind == ProcessWorker.type else None,
            parameter_openapi_schema={"type": "object", "properties": {}},
            enforce_parameter_schema=True,
            job_variables=job,
            paused=False,
        )
    return wanted, True


def _pull(root: Path) -> list[dict[str, Any]]:
    return [{"prefect.deployments.steps.set_working_directory": {"directory": str(root)}}]


def _existing(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    found = _found(client, name)
    if found is None:
        known = ", ".join(one.name for one in deployments(client)) or "none yet"
        raise UserError(f"--name {name!r}: there is no such deployment; there are: {known}")
    return found


def pause(name: str) -> None:
    """Stop a deployment from firing until it is scheduled again.

    Raises:
        UserError: If it does not exist.
        Unavailable: If the server does not answer.
    """
    with api() as client:
        client.pause_deployment(_existing(client, name).id)


def remove(name: str) -> None:
    """Delete a deployment and the runs that it has ahead of it.

    Raises:
        UserError: If it does not exist.
        Unavailable: If the server does not answer.
    """
    with api() as client:
        client.delete_deployment(_existing(client, name).id)


def plans() -> list[tuple[str, Plan | None]]:
    """Return each deployment's name and what it does; None if it was given other schedules.

    Raises:
        Unavailable: If the server does not answer.
    """
    with api() as client:
        return [(one.name, _plan(one)) for one in deployments(client)]

"""`prong schedule`: the deployment that runs the main job at given times."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.scheduling import cron
from pipelines.systems.prefect import deployed_flows
from pipelines.systems.prefect.connection import SyncPrefectClient, api
from pipelines.systems.prefect.decorators import SCHEDULED
from pipelines.systems.prefect.deployed_flows import DeploymentResponse
from pipelines.systems.prefect.schedules import CronSchedule

FLOW = SCHEDULED
ENTRYPOINT = "pipelines.scheduling.flow.scheduled"
"""By module, so that it is found where the package is installed as well as in a checkout."""
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


def _plan(found: DeploymentResponse) -> Plan | None:
    """Return what a deployment does, or None if it has not exactly one cron schedule."""
    fires = deployed_flows.cron_of(found)
    if fires is None:
        return None
    schedule, active = fires
    return Plan(
        name=found.name,
        cron=schedule.cron,
        timezone=schedule.timezone or "UTC",
        pool=found.work_pool_name or "",
        paused=found.paused or not active,
        root=deployed_flows.root_of(found),
    )


def ensure_pool(client: SyncPrefectClient, pool: str, asked: str = "--pool") -> str:
    """Return the type of a work pool; the default one is made if it is absent.

    Raises:
        UserError: If another one does not exist.
    """
    known = deployed_flows.pool_types(client)
    if pool in known:
        return known[pool]
    if pool != POOL:
        there = ", ".join(sorted({POOL, *known}))
        raise UserError(
            f"{asked} {pool!r}: there is no such work pool; allowed: {there}, or one made first by "
            "`prefect work-pool create`"
        )
    deployed_flows.create_process_pool(client, pool)
    return deployed_flows.PROCESS


def _job(layout: Layout, kind: str) -> dict[str, Any]:
    """Return what a pool's jobs are to be started with; images bring their own command."""
    if kind != deployed_flows.PROCESS:
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
        before = deployed_flows.find(client, FLOW, name)
        job = _job(layout, kind)
        same = before is not None and (before.job_variables, before.entrypoint) == (job, ENTRYPOINT)
        if before is not None and same and _plan(before) == wanted:
            return wanted, False
        deployed_flows.deploy_flow(
            client,
            FLOW,
            name,
            schedule,
            description="Runs the main job when there is something new.",
            entrypoint=ENTRYPOINT,
            root=layout.root,
            pool=pool,
            kind=kind,
            job=job,
        )
    return wanted, True


def _existing(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    cron.check_name("--name", name)
    found = deployed_flows.find(client, FLOW, name)
    if found is None:
        known = (
            ", ".join(one.name for one in deployed_flows.deployments_of(client, FLOW)) or "none yet"
        )
        raise UserError(f"--name {name!r}: there is no such deployment; there are: {known}")
    return found


def pause(name: str) -> None:
    """Stop a deployment from firing until it is scheduled again.

    Raises:
        UserError: If it does not exist.
        Unavailable: If the server does not answer.
    """
    with api() as client:
        deployed_flows.pause(client, _existing(client, name).id)


def remove(name: str) -> None:
    """Delete a deployment and the runs that it has ahead of it.

    Raises:
        UserError: If it does not exist.
        Unavailable: If the server does not answer.
    """
    with api() as client:
        deployed_flows.delete(client, _existing(client, name).id)


def plans() -> list[tuple[str, Plan | None]]:
    """Return each deployment's name and what it does; None if it was given other schedules.

    Raises:
        Unavailable: If the server does not answer.
    """
    with api() as client:
        return [(one.name, _plan(one)) for one in deployed_flows.deployments_of(client, FLOW)]

"""`prong schedule`: the deployments that run the main job, or a look, at given times."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.scheduling import cron
from pipelines.systems.prefect import deployed_flows
from pipelines.systems.prefect.connection import SyncPrefectClient, api
from pipelines.systems.prefect.decorators import DEPLOYED, SCHEDULED
from pipelines.systems.prefect.deployed_flows import DeploymentResponse
from pipelines.systems.prefect.schedules import CronSchedule

FLOW = SCHEDULED
ENTRYPOINT = "pipelines.scheduling.flow.scheduled"
"""By module, so that it is found where the package is installed as well as in a checkout."""
NAME, POOL = "retrain", "prong"
"""What a deployment and its work pool are called unless told otherwise; as in prefect.yaml."""
COMMAND = "-m pipelines.scheduling.engine"


@dataclass(frozen=True)
class Deployed:
    """What a deployment runs.

    Attributes:
        flow: The flow's name.
        entrypoint: Where it is, by module.
        description: Shown on the server's page.
        parameters: Number or truth value for each parameter of the flow.
    """

    flow: str
    entrypoint: str
    description: str
    parameters: Mapping[str, float]


RETRAIN = Deployed(FLOW, ENTRYPOINT, "Runs the main job when there is something new.", {})


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


def deploy(
    layout: Layout, name: str, schedule: CronSchedule, pool: str, what: Deployed = RETRAIN
) -> tuple[Plan, bool]:
    """Make or change a deployment so that it fires at given times, and let it fire.

    Args:
        layout: The checkout that it runs.
        name: Of the deployment.
        schedule: When.
        pool: Work pool; the default one is made if it is absent.
        what: It runs.

    Returns:
        What the deployment does from now on, and whether anything had to change.

    Raises:
        UserError: If the name is wrong or that of another flow's deployment, or the pool does not
            exist.
        Unavailable: If the server does not answer.
    """
    cron.check_name("--name", name)
    timezone = schedule.timezone or "UTC"
    wanted = Plan(name, schedule.cron, timezone, pool, False, str(layout.root))
    with api() as client:
        kind = ensure_pool(client, pool)
        for other in set(DEPLOYED) - {what.flow}:
            if deployed_flows.find(client, other, name) is not None:
                raise UserError(
                    f"--name {name!r}: a deployment of the flow {other!r} has it; allowed: another "
                    "name"
                )
        before = deployed_flows.find(client, what.flow, name)
        job, given = _job(layout, kind), dict(what.parameters)
        same = before is not None and (
            (before.job_variables, before.entrypoint, before.parameters)
            == (job, what.entrypoint, given)
        )
        if before is not None and same and _plan(before) == wanted:
            return wanted, False
        deployed_flows.deploy_flow(
            client,
            what.flow,
            name,
            schedule,
            description=what.description,
            entrypoint=what.entrypoint,
            root=layout.root,
            pool=pool,
            kind=kind,
            job=job,
            parameters=given,
        )
    return wanted, True


def _existing(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    cron.check_name("--name", name)
    for flow in DEPLOYED:
        found = deployed_flows.find(client, flow, name)
        if found is not None:
            return found
    known = ", ".join(one.name for one in _all(client)) or "none yet"
    raise UserError(f"--name {name!r}: there is no such deployment; there are: {known}")


def _all(client: SyncPrefectClient) -> list[DeploymentResponse]:
    return [one for flow in DEPLOYED for one in deployed_flows.deployments_of(client, flow)]


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
        return [(one.name, _plan(one)) for one in _all(client)]

"""Deployments and work pools as the server has them: found, made, paused, deleted.

A call raises what Prefect raises; run it with a client of `connection.api`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from pipelines.systems.prefect.schedules import CronSchedule

__all__ = [
    "PROCESS",
    "DeploymentResponse",
    "create_process_pool",
    "cron_of",
    "delete",
    "deploy_flow",
    "deployments_of",
    "find",
    "pause",
    "pool_types",
    "root_of",
    "workers_at_work",
]

PROCESS = ProcessWorker.type
"""Type of the work pools whose runs are processes of the worker's machine."""
_SCHEMA = {bool: "boolean", int: "integer", float: "number"}
_SILENT = 90.0  # seconds; a worker gives a sign of life every 30


def find(client: SyncPrefectClient, flow: str, name: str) -> DeploymentResponse | None:
    """Return a flow's deployment, or None if there is none of that name."""
    try:
        return client.read_deployment_by_name(f"{flow}/{name}")
    except ObjectNotFound:
        return None


def deployments_of(client: SyncPrefectClient, flow: str) -> list[DeploymentResponse]:
    """Return the deployments of a flow, by name."""
    named = FlowFilter(name=FlowFilterName(any_=[flow]))
    return sorted(client.read_deployments(flow_filter=named), key=lambda one: one.name)


def cron_of(found: DeploymentResponse) -> tuple[CronSchedule, bool] | None:
    """Return a deployment's schedule and whether it fires; None unless it has one, by cron."""
    if len(found.schedules) != 1:
        return None
    (one,) = found.schedules
    return (one.schedule, one.active) if isinstance(one.schedule, CronSchedule) else None


def root_of(found: DeploymentResponse) -> str:
    """Return the checkout that a deployment runs; `prefect deploy` leaves its path empty."""
    return str(found.job_variables.get("working_dir") or found.path or "")


def deploy_flow(
    client: SyncPrefectClient,
    flow: str,
    name: str,
    schedule: CronSchedule,
    *,
    description: str,
    entrypoint: str,
    root: Path,
    pool: str,
    kind: str,
    job: Mapping[str, Any],
    parameters: Mapping[str, float] | None = None,
) -> None:
    """Make a deployment, or change the one of that name, and let it fire.

    Args:
        client: Of the server.
        flow: The flow's name.
        name: Of the deployment.
        schedule: When; it takes the place of all schedules that the deployment had.
        description: Shown on the server's page.
        entrypoint: File and function of the flow.
        root: The checkout it runs.
        pool: Work pool whose workers run it.
        kind: The pool's type; for one of processes, a run begins in the checkout.
        job: What the pool's jobs are to be started with.
        parameters: Number or truth value for each parameter of the flow.
    """
    given = dict(parameters or {})
    there = {"prefect.deployments.steps.set_working_directory": {"directory": str(root)}}
    client.create_deployment(
        flow_id=client.create_flow_from_name(flow),
        name=name,
        schedules=[DeploymentScheduleCreate(schedule=schedule, active=True, slug="cron")],
        description=description,
        work_pool_name=pool,
        path=str(root),
        entrypoint=entrypoint,
        pull_steps=[there] if kind == PROCESS else None,
        parameters=given,
        parameter_openapi_schema={
            "type": "object",
            "properties": {name: {"type": _SCHEMA[type(value)]} for name, value in given.items()},
        },
        enforce_parameter_schema=True,
        job_variables=dict(job),
        paused=False,
    )


def pause(client: SyncPrefectClient, deployment: UUID) -> None:
    """Stop a deployment from firing."""
    client.pause_deployment(deployment)


def delete(client: SyncPrefectClient, deployment: UUID) -> None:
    """Delete a deployment and the runs that it has ahead of it."""
    client.delete_deployment(deployment)


def pool_types(client: SyncPrefectClient) -> dict[str, str]:
    """Return work pool → its type."""
    return {one.name: one.type for one in client.read_work_pools()}


def workers_at_work(client: SyncPrefectClient, pool: str) -> int:
    """Return how many workers of a pool gave a sign of life in the last minute and a half."""
    oldest = datetime.now(UTC) - timedelta(seconds=_SILENT)
    try:
        found = client.read_workers_for_work_pool(pool)
    except ObjectNotFound:  # the pool was deleted, and its deployments left
        return 0
    beats = [one.last_heartbeat_time for one in found]
    return sum(beat is not None and beat > oldest for beat in beats)


def create_process_pool(client: SyncPrefectClient, name: str) -> None:
    """Make a work pool of processes."""
    template = ProcessWorker.get_default_base_job_template()
    client.create_work_pool(WorkPoolCreate(name=name, type=PROCESS, base_job_template=template))

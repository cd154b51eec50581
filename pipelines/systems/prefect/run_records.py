"""The server's record of flow runs: looked up, labelled, and brought into another state.

A call raises what Prefect raises; run it with a client of `connection.api`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Crashed, Scheduled

__all__ = [
    "AT_WORK",
    "FlowRun",
    "StateType",
    "cancel",
    "crash",
    "label",
    "latest_runs",
    "runs_at_work",
    "runs_due_within",
    "schedule_again",
]

AT_WORK = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
"""States of a run that has a process, or is about to have one."""
_PAGE = 200
_OUTERMOST = FlowRunFilterParentTaskRunId(is_null_=True)


def label(client: SyncPrefectClient, run_id: UUID, labels: Mapping[str, str]) -> None:
    """Write labels onto a run; others stay."""
    client.update_flow_run_labels(run_id, dict(labels))


def runs_due_within(client: SyncPrefectClient, deployment: UUID, span: timedelta) -> list[FlowRun]:
    """Return the runs of a deployment that were due in the time up to now, latest first.

    Args:
        client: Of the server.
        deployment: Its id.
        span: How far to look back.
    """
    now = datetime.now(UTC)
    due = FlowRunFilterExpectedStartTime.model_validate({"before_": now, "after_": now - span})
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
            flow_run_filter=FlowRunFilter(expected_start_time=due),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=_PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < _PAGE:
            return found


def runs_at_work(client: SyncPrefectClient, flows: Sequence[str]) -> list[FlowRun]:
    """Return the runs of flows, not those inside other runs, that count as being at work."""
    at_work = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(AT_WORK)))
    if not flows:
        return []
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=list(flows))),
        flow_run_filter=FlowRunFilter(state=at_work, parent_task_run_id=_OUTERMOST),
        sort=FlowRunSort.START_TIME_DESC,
        limit=_PAGE,
    )


def latest_runs(
    client: SyncPrefectClient,
    flows: Sequence[str],
    most: int,
    deployments: Collection[UUID] | None = None,
) -> list[FlowRun]:
    """Return the runs of flows, not those inside other runs, that have begun, latest first.

    Args:
        client: Of the server.
        flows: Names of the flows.
        most: How many runs to return, at most 200.
        deployments: Ids; None: runs without a deployment as well.
    """
    begun = FlowRunFilterStartTime(is_null_=False)
    where = None
    if deployments is not None:
        where = DeploymentFilter(id=DeploymentFilterId(any_=list(deployments)))
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=list(flows))),
        flow_run_filter=FlowRunFilter(start_time=begun, parent_task_run_id=_OUTERMOST),
        deployment_filter=where,
        sort=FlowRunSort.START_TIME_DESC,
        limit=min(most, _PAGE),
    )


def _set(client: SyncPrefectClient, run_id: UUID, state: State[Any]) -> None:
    client.set_flow_run_state(run_id, state, force=True)


def cancel(client: SyncPrefectClient, run_id: UUID, reason: str, name: str) -> None:
    """End a run that is not to work, in a state of this name."""
    _set(client, run_id, Cancelled(name=name, message=reason))


def crash(client: SyncPrefectClient, run_id: UUID, reason: str) -> None:
    """End a run whose process is gone as crashed, and the runs inside it that are at work."""
    parents = FlowRunFilterParentFlowRunId(any_=[run_id])
    at_work = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(AT_WORK)))
    inner = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(parent_flow_run_id=parents, state=at_work)
    )
    for one in (*(run.id for run in inner), run_id):
        _set(client, one, Crashed(message=reason))


def schedule_again(client: SyncPrefectClient, run_id: UUID, message: str) -> None:
    """Let a worker take a run again, now."""
    _set(client, run_id, Scheduled(name="AwaitingRetry", message=message))

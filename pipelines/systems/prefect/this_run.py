"""The flow run that is executed in this process: what it is, and the states in which it can end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed

__all__ = ["State", "ThisRun", "cancelled", "completed", "is_inner", "run_id", "this_run"]


@dataclass(frozen=True)
class ThisRun:
    """The flow run that is executed in this process.

    Attributes:
        run_id: Prefect's id.
        scheduled: The time it was made for.
        deployment: The id of its deployment; empty if the flow was called by hand.
        name: The deployment's name; empty likewise.
    """

    run_id: str
    scheduled: datetime
    deployment: str
    name: str


def run_id() -> str:
    """Return Prefect's id of the flow run that is executed in this process."""
    return str(flow_run.id)


def is_inner() -> bool:
    """Say whether the flow run that is executed in this process is part of another one."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return run is not None and run.parent_task_run_id is not None


def this_run() -> ThisRun:
    """Return the flow run that is executed in this process; its deployment is asked for by API."""
    return ThisRun(
        run_id=run_id(),
        scheduled=flow_run.scheduled_start_time,
        deployment=str(deployment.id or ""),
        name=str(deployment.name or ""),
    )


def completed(message: str, name: str = "Completed") -> State[Any]:
    """Return the state of a run that ended well.

    Args:
        message: What came of it, in one line.
        name: Of the state.
    """
    return Completed(name=name, message=message)


def cancelled(message: str, name: str) -> State[Any]:
    """Return the state of a run that is not to work.

    Args:
        message: Why, in one line.
        name: Of the state.
    """
    return Cancelled(name=name, message=message)

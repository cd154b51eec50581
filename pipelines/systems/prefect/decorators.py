"""Flows and tasks as this project makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import prefect
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.flows import Flow
from prefect.tasks import Task

from pipelines.systems.prefect.signed_runs import signs_of_life
from pipelines.systems.prefect.this_run import is_inner, run_id

P = ParamSpec("P")
R = TypeVar("R")


MAIN_JOB, SCHEDULED, MONITORED = "prong", "scheduled", "monitor"
"""What the server calls the flows: the main job, a scheduled run of it, and a scheduled look."""
FLOWS = (MAIN_JOB, SCHEDULED, MONITORED)
DEPLOYED = (SCHEDULED, MONITORED)
"""Those of which there are deployments."""


def flow(
    name: str, came_of: Callable[[Any], str] | None = None
) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Return a decorator that makes a function a flow; its arguments are not checked or copied.

    A run that is not part of another one is signed by its process, which also closes the runs of
    its checkout that died; neither is waited for.

    Args:
        name: Under which the server knows the flow.
        came_of: Says of a result, in one line, what came of the run; None: nothing is recorded.
    """

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        @wraps(function)
        def signed(*args: P.args, **kwargs: P.kwargs) -> R:
            if is_inner():
                return function(*args, **kwargs)
            with signs_of_life(run_id(), FLOWS) as say:
                result = function(*args, **kwargs)
                if came_of:
                    say(came_of(result))
            return result

        return prefect.flow(name=name, validate_parameters=False)(signed)

    return decorate


def task(function: Callable[P, R]) -> Task[P, R]:
    """Make a function a task that is run each time: DVC says what is up to date."""
    return prefect.task(cache_policy=NO_CACHE)(function)


def retried(
    function: Callable[P, R], pauses: Sequence[float], can_pass: Callable[[BaseException], bool]
) -> Task[P, R]:
    """Return a task that is run again after an error that may pass.

    Args:
        function: What is run.
        pauses: Seconds before each new attempt; as many attempts are made.
        can_pass: Says of an error whether it may be gone the next time.
    """

    def again(_task: object, _run: object, state: State[Any]) -> bool:
        error = state.result(raise_on_failure=False)
        return isinstance(error, BaseException) and can_pass(error)

    return prefect.task(
        cache_policy=NO_CACHE,
        retries=len(pauses),
        retry_delay_seconds=list(pauses),
        retry_condition_fn=again,
    )(function)

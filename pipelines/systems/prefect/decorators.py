"""Flows and tasks as this project makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import prefect
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.flows import Flow
from prefect.tasks import Task

P = ParamSpec("P")
R = TypeVar("R")


def flow(name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Return a decorator that makes a function a flow; its arguments are not checked or copied.

    Args:
        name: Under which the server knows the flow.
    """

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        return prefect.flow(name=name, validate_parameters=False)(function)

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

"""Runs say which process executes them, and are closed once it is gone."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import prefect
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Completed, Running
from test_deployment import lost

from pipelines.core.paths import Layout
from pipelines.systems.liveness import HEARTBEAT, START, identity
from pipelines.systems.prefect.connection import api
from pipelines.systems.prefect.decorators import MAIN_JOB, flow, task
from pipelines.systems.prefect.signed_runs import CAME_OF, CHECKOUT, close_lost, why_lost
from pipelines.systems.prefect.this_run import run_id


@prefect.flow(name=MAIN_JOB)
def nothing() -> None:
    """Stand for the main job where only its record matters."""


def by_hand(client: SyncPrefectClient, labels: Mapping[str, str]) -> FlowRun:
    """Return a run of the main job that counts as being at work."""
    run = client.create_flow_run(nothing, state=Running())
    if labels:
        client.update_flow_run_labels(run.id, dict(labels))
    return client.read_flow_run(run.id)


def state_of(client: SyncPrefectClient, run: FlowRun) -> tuple[StateType, str]:
    state = client.read_flow_run(run.id).state
    assert state is not None
    return state.type, state.message or ""


def test_the_next_run_closes_one_that_was_killed_and_says_what_came_of_it(
    served: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(served.root)
    with api() as client:
        dead = by_hand(client, lost())
        alive = by_hand(client, identity())

    @flow(name=MAIN_JOB, came_of=lambda made: f"v{made} champion")
    def job() -> int:
        found.append(run_id())
        return 7

    found: list[str] = []
    assert job() == 7
    with api() as client:
        kind, said = state_of(client, dead)
        assert (kind, "is gone" in said) == (StateType.CRASHED, True)
        assert state_of(client, alive)[0] is StateType.RUNNING
        mine = client.read_flow_run(UUID(found[0]))
        assert mine.labels[START] == identity()[START]
        assert mine.labels[CHECKOUT] == str(served.root)
        assert mine.labels[CAME_OF] == "v7 champion"
        client.delete_flow_run(alive.id)


def test_a_run_inside_another_is_not_signed(served: Layout) -> None:
    inside: list[str] = []

    @flow(name="inner")
    def inner() -> None:
        inside.append(run_id())

    @task
    def between() -> None:
        inner()

    @flow(name="outer")
    def outer() -> None:
        inner()
        between()

    outer()
    with api() as client:
        assert [START in client.read_flow_run(UUID(one)).labels for one in inside] == [False] * 2


def test_only_what_is_certainly_dead_is_closed_for_another_checkout(served: Layout) -> None:
    elsewhere = {**identity(), "prong.kernel": "another boot", HEARTBEAT: "0"}
    with api() as client:
        runs = {
            "silent, of another": by_hand(client, {**elsewhere, CHECKOUT: "/other"}),
            "just begun": by_hand(client, {}),
            "silent, ours": by_hand(client, {**elsewhere, CHECKOUT: "/here"}),
            "gone, of another": by_hand(client, {**lost(), CHECKOUT: "/other"}),
            "signed with garbage": by_hand(client, {START: "x", "prong.pid": "many"}),
        }
        try:
            closed = {run.id for run, _ in close_lost(client, (MAIN_JOB,), "/here")}
            assert [name for name, run in runs.items() if run.id not in closed] == [
                "silent, of another",
                "just begun",
            ]
            assert close_lost(client, (MAIN_JOB,), "/here") == []
        finally:
            for run in runs.values():
                client.delete_flow_run(run.id)


def test_a_run_that_ended_is_not_lost(served: Layout) -> None:
    with api() as client:
        run = by_hand(client, lost())
        assert "is gone" in why_lost(run)
        client.set_flow_run_state(run.id, Completed(), force=True)
        assert why_lost(client.read_flow_run(run.id)) == ""

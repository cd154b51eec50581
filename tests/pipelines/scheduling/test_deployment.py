"""Deployments and their runs on a real Prefect server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Completed, Crashed, Pending, Running, Scheduled
from ruamel.yaml import YAML
from small_checkout import SOURCE

from pipelines.core.errors import Failed, Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.scheduling import deployment
from pipelines.scheduling import flow_runs as runs
from pipelines.scheduling.cron import schedule
from pipelines.scheduling.deployment import FLOW, POOL, deploy
from pipelines.scheduling.rules import can_pass
from pipelines.systems.liveness import identity
from pipelines.systems.prefect.connection import api
from pipelines.systems.prefect.decorators import retried
from pipelines.systems.prefect.deployed_flows import deployments_of
from pipelines.systems.processes import process_start

NIGHTLY = schedule("0 3 * * *", "UTC")


def lost() -> dict[str, str]:
    """Return the signature of a process of this machine that is gone."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(process.pid) or ""
    process.communicate()
    return {**identity(), "prong.pid": str(process.pid), "prong.process_start": start}


def begun(
    client: SyncPrefectClient, where: UUID, state: object, signed: dict[str, str] | None = None
) -> FlowRun:
    """Return a run in a state, made for now, as if a worker had brought it there."""
    run = client.create_flow_run_from_deployment(where)
    if signed:
        client.update_flow_run_labels(run.id, dict(signed))
    client.set_flow_run_state(run.id, state, force=True)  # type: ignore[arg-type]
    return run


def stands(client: SyncPrefectClient, run: FlowRun) -> tuple[StateType, str]:
    state = client.read_flow_run(run.id).state
    assert state is not None
    return state.type, state.name or ""


def test_the_same_call_twice_makes_one_deployment_with_one_schedule(served: Layout) -> None:
    first, changed = deploy(served, "twice", NIGHTLY, POOL)
    assert changed
    again, changed = deploy(served, "twice", NIGHTLY, POOL)
    assert not changed
    assert again == first
    weekly = schedule("30 4 * * 1", "Europe/Paris")
    moved, changed = deploy(served, "twice", weekly, POOL)
    assert changed
    assert (moved.cron, moved.timezone) == ("30 4 * * 1", "Europe/Paris")
    with api() as client:
        (found,) = [one for one in deployments_of(client, FLOW) if one.name == "twice"]
        assert len(client.read_deployment_schedules(found.id)) == 1
    assert ("twice", moved) in deployment.plans()


def test_a_pause_holds_until_the_next_call_and_removal_is_final(served: Layout) -> None:
    deploy(served, "paused", NIGHTLY, POOL)
    deployment.pause("paused")
    assert [plan.paused for name, plan in deployment.plans() if plan and name == "paused"] == [True]
    _, changed = deploy(served, "paused", NIGHTLY, POOL)
    assert changed
    assert [plan.paused for name, plan in deployment.plans() if plan and name == "paused"] == [
        False
    ]
    deployment.remove("paused")
    assert "paused" not in [name for name, _ in deployment.plans()]
    with pytest.raises(UserError, match="--name 'paused': there is no such deployment"):
        deployment.remove("paused")


@pytest.mark.parametrize("name", ["caf\udce9", "../etc", "a/b", ""])
def test_a_name_that_is_none_is_a_mistake_of_the_user(served: Layout, name: str) -> None:
    for act in (deployment.pause, deployment.remove):
        with pytest.raises(UserError, match=r"--name .*allowed: up to 100 letters"):
            act(name)


def test_an_unknown_pool_is_refused_by_name(served: Layout) -> None:
    with pytest.raises(UserError, match=r"--pool 'nowhere'.*allowed: prong"):
        deploy(served, "lost", NIGHTLY, "nowhere")


def test_a_dead_run_is_closed_and_the_newest_begun_again(served: Layout) -> None:
    deploy(served, "dying", NIGHTLY, POOL)
    with api() as client:
        where = client.read_deployment_by_name(f"{FLOW}/dying").id
        old = begun(client, where, Running(), lost())
        young = begun(client, where, Running(), lost())
        alive = begun(client, where, Completed())  # an earlier one that ended well
        client.delete_flow_run(alive.id)
        closed = runs.close_dead(client, where, begin_again=True)
        assert {run.run_id: run.again for run in closed} == {
            str(old.id): False,
            str(young.id): True,
        }
        assert all("is gone" in run.reason for run in closed)
        assert stands(client, old)[0] is StateType.CRASHED
        assert stands(client, young)[0] is StateType.SCHEDULED
        assert runs.close_dead(client, where, begin_again=True) == []


def test_a_run_whose_process_lives_is_left_alone(served: Layout) -> None:
    deploy(served, "living", NIGHTLY, POOL)
    with api() as client:
        where = client.read_deployment_by_name(f"{FLOW}/living").id
        made = [
            begun(client, where, Running(), identity()),
            begun(client, where, Pending()),  # a worker is about to start its process
            begun(client, where, Scheduled(scheduled_time=datetime.now(UTC))),
        ]
        before = [stands(client, run) for run in made]
        assert runs.close_dead(client, where, begin_again=True) == []
        assert [stands(client, run) for run in made] == before


def test_a_crashed_run_is_begun_again_unless_a_later_one_did_its_work(served: Layout) -> None:
    deploy(served, "crashing", NIGHTLY, POOL)
    with api() as client:
        where = client.read_deployment_by_name(f"{FLOW}/crashing").id
        run = begun(client, where, Crashed(message="exit code -9"))
        assert [one.again for one in runs.close_dead(client, where, begin_again=True)] == [True]
        client.set_flow_run_state(run.id, Crashed(message="exit code -9"), force=True)
        begun(client, where, Completed())
        assert [one.again for one in runs.close_dead(client, where, begin_again=True)] == [False]
        assert runs.close_dead(client, where, begin_again=True) == []
        assert stands(client, run)[0] is StateType.CRASHED


def test_skipped_runs_say_why(served: Layout) -> None:
    deploy(served, "late", NIGHTLY, POOL)
    with api() as client:
        where = client.read_deployment_by_name(f"{FLOW}/late").id
        run = begun(client, where, Scheduled(scheduled_time=datetime.now(UTC)))
        runs.skip(client, [str(run.id)], "late: another works in its place")
        assert stands(client, run) == (StateType.CANCELLED, runs.SKIPPED)
        (found,) = runs.recent(client, where)
        assert runs.due(found).phase == "skipped"
        assert found.state is not None
        assert found.state.message == "late: another works in its place"


def test_runs_older_than_a_week_are_history(served: Layout) -> None:
    deploy(served, "old", NIGHTLY, POOL)
    with api() as client:
        where = client.read_deployment_by_name(f"{FLOW}/old").id
        long_ago = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(days=30))
        client.create_flow_run_from_deployment(where, state=long_ago)
        assert runs.recent(client, where) == []


def test_a_server_that_is_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )

    away = {PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(away), pytest.raises(Unavailable, match="Prefect"):
        deployment.plans()


def test_prefect_yaml_declares_what_prong_schedule_makes() -> None:
    declared = YAML(typ="safe").load(SOURCE / "prefect.yaml")
    (one,) = declared["deployments"]
    assert one["name"] == deployment.NAME
    assert one["work_pool"]["name"] == POOL
    assert one["entrypoint"] == deployment.ENTRYPOINT
    assert one["work_pool"]["job_variables"]["command"].endswith(deployment.COMMAND)
    assert declared["prefect-version"] == version("prefect")
    module, _, name = deployment.ENTRYPOINT.rpartition(".")
    from pipelines.scheduling.flow import scheduled

    assert (module, name) == (scheduled.fn.__module__, scheduled.fn.__name__)
    assert scheduled.name == FLOW
    for when in one["schedules"]:
        assert schedule(when["cron"], when["timezone"])


@pytest.mark.parametrize(
    ("error", "calls"),
    [(Unavailable("silent"), 3), (UserError("wrong"), 1), (Failed("crashed"), 1)],
)
def test_prefect_makes_again_only_what_can_pass(
    served: Layout, error: Exception, calls: int
) -> None:
    made = []

    def attempt() -> None:
        made.append(1)
        raise error

    with pytest.raises(type(error), match=str(error)):
        retried(attempt, [0, 0], can_pass)()
    assert len(made) == calls


@pytest.mark.slow
def test_prefects_own_command_deploys_the_same(served: Layout) -> None:
    shutil.copy(SOURCE / "prefect.yaml", served.root)
    with api() as client:
        deployment.ensure_pool(client, POOL)
        address = str(client.api_url)
    here = str(served.root)  # a shell sets PWD when it changes folders
    program = Path(sys.executable).with_name("prefect")
    for _ in range(2):
        done = subprocess.run(
            [program, "--no-prompt", "deploy", "--all"],
            cwd=served.root,
            env={**os.environ, "PREFECT_API_URL": address, "PWD": here, "PYTHONPATH": here},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (plan,) = [plan for name, plan in deployment.plans() if name == deployment.NAME]
    assert plan is not None
    assert (plan.cron, plan.pool, plan.root) == ("0 3 * * *", POOL, here)

"""A scheduled look: deployed, listed, executed and told like a scheduled run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import test_worker as worker
from git_commands import commit_all
from prefect.client.schemas.objects import StateType
from small_checkout import Checkout, make
from webhook import Receiver

from pipelines.core import params_file
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.monitoring import scheduled_look
from pipelines.monitoring.look import Settings
from pipelines.scheduling import deployment, past_runs
from pipelines.scheduling.cron import schedule
from pipelines.scheduling.deployment import POOL, deploy
from pipelines.serving.request_log import LoggedRequest, RequestLog, log_folder, now
from pipelines.systems.prefect.connection import api
from pipelines.systems.prefect.decorators import MONITORED

HOURLY = schedule("0 * * * *", "UTC")


def test_looks_are_deployed_listed_changed_and_removed_like_runs(served: Layout) -> None:
    what = scheduled_look.deployed(Settings(rate=0.02, minimum=200), retraining=False)
    plan, changed = deploy(served, "looks", HOURLY, POOL, what)
    assert changed
    assert not deploy(served, "looks", HOURLY, POOL, what)[1]
    with api() as client:
        found = client.read_deployment_by_name(f"{MONITORED}/looks")
        assert found.parameters == {"rate": 0.02, "minimum": 200, "retraining": False}
        assert found.entrypoint == scheduled_look.ENTRYPOINT
        names = [
            one.deployment for one in map(past_runs.next_run, past_runs.deployments(client, served))
        ]
        assert "looks" in names
    stricter = scheduled_look.deployed(Settings(rate=0.01, minimum=200), retraining=False)
    assert deploy(served, "looks", HOURLY, POOL, stricter)[1]
    assert ("looks", plan) in deployment.plans()
    with pytest.raises(UserError, match="a deployment of the flow 'monitor' has it"):
        deploy(served, "looks", HOURLY, POOL)
    deployment.pause("looks")
    deployment.remove("looks")
    assert "looks" not in [name for name, _ in deployment.plans()]


def test_the_entrypoint_is_the_flow() -> None:
    module, _, name = scheduled_look.ENTRYPOINT.rpartition(".")
    found = scheduled_look.monitored
    assert (module, name) == (found.fn.__module__, found.fn.__name__)
    assert found.name == MONITORED


def test_a_look_ends_in_a_state_that_says_what_came_of_it(
    served: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(served.root)
    state = scheduled_look.monitored(0.01, 100, False, return_state=True)
    assert (state.type, state.message) == (StateType.COMPLETED, "no new requests")
    refused = scheduled_look.monitored(0.01, 1, False, return_state=True)
    assert refused.type is StateType.FAILED
    assert "--minimum 1" in str(refused.message)
    shutil.rmtree(served.reports)


def shifted(checkout: Checkout, batch: int) -> None:
    """Log 200 requests to version 1 whose answers are those of no digits."""
    layout = Layout(checkout.root)
    log = RequestLog(log_folder(layout, params_file.load(layout.params).model_name))
    one = LoggedRequest(
        time=now(),
        request="",
        model=params_file.load(layout.params).model_name,
        version=1,
        sha256=sha256_file(layout.onnx),
        examples=1,
        seconds=0.001,
        answers=[[0.1] * 10],
        labels=[4],
    )
    log.append([replace(one, request=f"r-{batch}-{at}") for at in range(200)])
    log.close()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_worker_looks_and_trains_once_there_are_new_labels(
    tmp_path: Path,
    receiver: Receiver,
) -> None:
    checkout = make(tmp_path / "job")
    params_file.edit(checkout.root / "params.yaml", ["alerts.webhook=$PRONG_WEBHOOK"])
    commit_all(checkout.root, "alerts")
    first = checkout.prong("run")
    assert first.code == 0, first.err
    made = checkout.prong(*["monitor", "--minimum", "30", "--cron"], "0 0 1 1 *")
    assert made.code == 0, made.err
    with worker.working(checkout, PRONG_WEBHOOK=receiver.url):
        assert "monitor  0 0 1 1 *" in checkout.prong("schedule", "--list").out
        (where,) = worker.post(checkout, "deployments/filter", {}).json()

        def looks() -> list[worker.Run]:
            return worker.runs(checkout, "monitor")

        def looked(count: int) -> str:
            worker.post(checkout, f"deployments/{where['id']}/create_flow_run", {})
            worker.until(
                lambda: sum(run["state_type"] == "COMPLETED" for run in looks()) == count,
                f"look {count}",
                patience=900.0,  # one of them trains
            )
            run = looks()[-1]
            state = run["state"]
            assert isinstance(state, dict)
            return f"{state['name']}: {state['message']}"

        assert looked(1) == "Completed: no new requests"
        shifted(checkout, 1)
        said = looked(2)
        assert said.startswith("Drift: v1: drift; no labelled data has changed")
        assert worker.versions(checkout) == [1]
        (report,) = checkout.root.glob("reports/monitor-*.json")
        (of,) = json.loads(report.read_text())["versions"]
        assert "held-out examples of its drift graph" in of["reference"]
        assert of["method"]

        more = worker.more_digits(tmp_path / "more")
        added = checkout.prong("data", "add", str(more))
        assert added.code == 0, added.out + added.err
        shifted(checkout, 2)
        said = looked(3)
        assert said.startswith("Drift: v1: drift; trained on new labels: v2"), said
        assert worker.versions(checkout) == [2, 1]
    events = [(alert["event"], alert["version"]) for alert in receiver.got]
    assert events[:2] == [("drift", 1), ("drift", 1)], events
    assert events[2] in (("promoted", 2), ("blocked", 2)), events  # as the gates find it
    status = json.loads(checkout.prong("status", "--json").out)
    assert any("trained on new labels" in run["came_of"] for run in status["runs"])

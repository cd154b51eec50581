"""`prong status`: what it reads from Prefect, and the screen."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.states import Failed, Running
from test_deployment import begun, lost

from pipelines.cli.status import render
from pipelines.core.paths import Layout
from pipelines.scheduling import deployment
from pipelines.scheduling.cron import schedule
from pipelines.scheduling.deployment import FLOW, POOL, deploy
from pipelines.scheduling.overview import Overview, overview
from pipelines.scheduling.past_runs import NextRun, PastRun
from pipelines.scheduling.worker import _only_worker, working
from pipelines.systems.prefect.connection import api

START = datetime(2030, 1, 1, 3, tzinfo=UTC)


@dataclass(frozen=True)
class Wrong:
    what: str
    said: str
    way_on: str


@dataclass(frozen=True)
class Stands:
    model: str = "prong-digits"
    version: int | None = 3
    since: str | None = "2030-01-01T03:00:00+00:00"
    by: str = "eva"
    reason: str = "all gates passed"
    challenger: int | None = 4
    challenger_reason: str = "quality: [0.2] above 0.1"
    problems: tuple[Wrong, ...] = ()


RUNS = Overview(
    next_runs=(NextRun("retrain", START, "0 3 * * * UTC"),),
    worker=True,
    runs=(
        PastRun("1", "warm-otter", "retrain", 1, START, 126.0, "completed", "v3 champion"),
        PastRun("2", "cold-crow", "", 1, START, None, "running", ""),
    ),
)


def test_the_overview_reads_schedule_worker_and_last_runs(served: Layout) -> None:
    for name, _ in deployment.plans():
        deployment.remove(name)
    assert overview(served).schedule == "none scheduled"
    deploy(served, "nightly", schedule("0 3 * * *", "UTC"), POOL)
    other = Layout(served.root.parent / "other")
    deploy(other, "of-another", schedule("0 4 * * *", "UTC"), POOL)
    with api() as client:
        where = client.read_deployment_by_name(f"{FLOW}/nightly").id
        begun(client, where, Running())
        failed = Failed(message="Flow run encountered an exception: UserError: no data")
        client.set_flow_run_state(begun(client, where, Running()).id, failed, force=True)
        begun(client, where, Running(), lost())
        elsewhere = client.read_deployment_by_name(f"{FLOW}/of-another").id
        begun(client, elsewhere, Running())
    found = overview(served)
    (due,) = found.next_runs
    assert due.deployment == "nightly"
    assert due.due is not None
    assert (due.due.hour, due.due > datetime.now(UTC)) == (3, True)
    assert found.schedule == "scheduled, but no worker runs: start `prong worker`"
    gone, broken, alive = found.runs[:3]
    assert [gone.outcome, broken.outcome, alive.outcome] == ["lost", "failed", "running"]
    assert "is gone" in gone.came_of
    assert (broken.came_of, broken.deployment) == ("UserError: no data", "nightly")
    assert broken.seconds is not None
    assert alive.seconds is None
    assert len(found.runs) <= 5
    with _only_worker(served):
        assert overview(served).schedule == ""
    deployment.pause("nightly")
    assert overview(served).next_runs[0].due is None
    for name in ("nightly", "of-another"):
        deployment.remove(name)


def test_a_worker_counts_while_its_process_lives(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert working(layout) is None
    with _only_worker(layout):
        assert working(layout) is not None
    for left in ("", "1", "many 5", "1 0", "² 5"):
        (layout.state / "worker.lock").write_text(left)
        assert working(layout) is None
    (layout.state / "worker.lock").write_bytes(b"\xff\xfe")
    assert working(layout) is None


def test_the_screen_shows_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert render(Stands(), RUNS, as_json=False)
    out = capsys.readouterr().out
    for words in (
        *("prong-digits v3", "by eva", "all gates passed", "v4: not live: quality: [0.2] above"),
        *("healthy      yes", "retrain  (0 3 * * * UTC)", "126 s", "v3 champion", "by hand"),
    ):
        assert words in out
    assert "worker" not in out


def test_what_is_wrong_is_said_with_the_way_on(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = Wrong("file", "[/srv/x] \x1b[2J is lost", "prong repair")
    assert not render(Stands(problems=(wrong,)), replace(RUNS, worker=False), as_json=False)
    out = capsys.readouterr().out
    assert r"NO: file: [/srv/x] \x1b[2J is lost" in out
    assert "→ prong repair" in out
    assert "scheduled, but no worker runs" in out
    assert "\x1b[2J" not in out


def test_prefect_that_does_not_answer_hides_nothing_of_the_registry(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not render(Stands(), "Prefect: no answer", as_json=False)
    out = capsys.readouterr().out
    assert "prong-digits v3" in out
    assert "unknown: Prefect: no answer" in out


def test_nothing_live_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    none = Stands(version=None, since=None, challenger=None)
    assert render(none, Overview((), False, ()), as_json=False)
    out = capsys.readouterr().out
    assert "nothing of prong-digits" in out
    assert "none scheduled" in out
    assert "none yet" in out


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = Wrong("file", "lost", "prong repair")
    assert not render(Stands(problems=(wrong,)), RUNS, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["healthy"], found["worker"]) == (3, False, True)
    assert found["problems"] == [{"what": "file", "said": "lost", "way_on": "prong repair"}]
    assert found["next_runs"][0]["due"] == "2030-01-01T03:00:00+00:00"
    assert [run["came_of"] for run in found["runs"]] == ["v3 champion", ""]
    assert not render(Stands(), "no answer", as_json=True)
    assert json.loads(capsys.readouterr().out)["runs_unknown"] == "no answer"

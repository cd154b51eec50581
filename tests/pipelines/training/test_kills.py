"""SIGKILL at random times, of any process of a DVC stage: the same bytes, and nothing left over."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_checkout import Checkout, make

from pipelines.core import params_file
from pipelines.core.waiting import wait_until

SETTINGS = ["train.epochs=25", "train.period=5", "supervision.checkpoint=9"]
KILLS = 27  # of each number of ranks


def _train(checkout: Checkout) -> subprocess.Popen[str]:
    words = ["-m", "dvc", "repro", "--single-item", "--force", "--no-run-cache", "train"]
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=checkout.root,
        env=checkout.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said


def _weights(checkout: Checkout) -> bytes:
    return (checkout.root / "models/trained/network.safetensors").read_bytes()


def _tables(checkout: Checkout) -> list[dict[str, str]]:
    """Return history and conditioning, without what the clock says."""
    rows = []
    for name in ("history", "conditioning"):
        with (checkout.root / f"reports/{name}.csv").open() as file:
            rows += [
                {k: v for k, v in row.items() if k not in ("samples_per_second", "seconds")}
                for row in csv.DictReader(file)
            ]
    return rows


def _role(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        words = " ".join(process.cmdline())
        signs = {
            "torchrun": "training.agent",
            "rank": "training.rank",
            "stage": "pipelines.pipeline.stages",
            "dvc": "dvc repro",
        }
        for role, sign in signs.items():
            if sign in words:
                return role
    return "other"


def _kill(checkout: Checkout, draw: random.Random, seen: Counter[str]) -> bool:
    """Start the stage and kill one of its processes; return whether it ended by itself first."""
    process = _train(checkout)
    family: list[psutil.Process] = []
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(2, 15))
        if process.poll() is not None:
            _finish(process)
            return True
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        victim = draw.choice([one for one in family if _role(one) != "other"])
        seen[_role(victim)] += 1
        with suppress(psutil.NoSuchProcess):
            family = list({*family, *parent.children(recursive=True)})
            victim.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        _, left = psutil.wait_procs(family, timeout=30)
        assert not left, [one.cmdline() for one in left]
        return False
    finally:
        for one in family:
            with suppress(psutil.Error):
                one.kill()
        process.kill()
        process.communicate()


def _runs(checkout: Checkout) -> list[dict[str, Any]]:
    """Return the status of every MLflow run, and how often it has each point."""
    program = (
        "import json, pathlib; from pipelines.core.paths import Layout;"
        "from pipelines.systems import mlflow as tracking;"
        "layout = Layout(pathlib.Path.cwd()); tracking.close_dead_runs(layout);"
        "client = tracking.connect(layout);"
        "ids = [e.experiment_id for e in client.search_experiments()];"
        "print(json.dumps([{'status': r.info.status, 'tags': dict(r.data.tags), 'losses': [m.step "
        "for m in client.get_metric_history(r.info.run_id, 'train_loss')]} "
        "for r in client.search_runs(ids)]))"
    )
    done = checkout.run("python", "-c", program)
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = make(tmp_path_factory.mktemp("kills") / "job")
    done = made.repro("prepare")
    assert done.code == 0, done.out + done.err
    return made


def _forget(checkout: Checkout) -> None:
    for name in (".prong/trainings", ".prong/mlflow.db", "models", "reports"):
        path = checkout.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@pytest.mark.timeout(3000)
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_sigkill_at_random_times(checkout: Checkout, ranks: int) -> None:
    _forget(checkout)
    params_file.edit(checkout.root / "params.yaml", [*SETTINGS, f"train.processes={ranks}"])
    _finish(_train(checkout))
    weights, tables = _weights(checkout), _tables(checkout)
    _forget(checkout)
    draw, seen, trainings, done = random.Random(ranks), Counter[str](), 0, 0
    while done < KILLS:
        if _kill(checkout, draw, seen):
            assert _weights(checkout) == weights
            trainings += 1
            shutil.rmtree(checkout.root / ".prong/trainings")
        else:
            done += 1
    _finish(_train(checkout))
    assert _weights(checkout) == weights
    assert _tables(checkout) == tables
    steps = [int(row["step"]) for row in tables if row.get("train_loss")]
    found = _runs(checkout)
    assert {run["status"] for run in found} <= {"FINISHED", "FAILED", "KILLED"}
    whole = [run for run in found if run["status"] == "FINISHED"]
    assert len(whole) == trainings + 1
    for run in whole:
        assert sorted(run["losses"]) == sorted(set(steps)), "each point once"
    left = [path for path in (checkout.root / "models").iterdir() if path.name != "trained"]
    assert left == []
    print(f"{KILLS} kills on {ranks} ranks: {dict(seen)}, {trainings} trainings ended between")
    started = time.monotonic()
    assert checkout.run("dvc", "status").code == 0
    assert time.monotonic() - started < 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "after"),
    [
        (signal.SIGKILL, 0.0),  # while the rank still loads
        (signal.SIGKILL, 5.0),
        (signal.SIGTERM, 5.0),
    ],
)
def test_no_process_outlives_its_run_and_the_next_run_goes_on(
    tmp_path: Path, how: signal.Signals, after: float
) -> None:
    checkout = make(tmp_path / "job")
    params_file.edit(checkout.root / "params.yaml", ["train.epochs=5000", "train.processes=1"])
    process = checkout.start("run")
    family: list[psutil.Process] = []
    try:
        family = _with_ranks(process.pid, after)
        process.send_signal(how)
        assert process.wait(timeout=60) != 0
        _, left = psutil.wait_procs(family, timeout=60)
        assert not left, f"left at work: {[' '.join(_command(p)) for p in left]}"
    finally:
        for one in [*family, process]:
            with suppress(psutil.Error):
                one.kill()
        process.communicate()
    params_file.edit(checkout.root / "params.yaml", ["train.epochs=1"])
    done = checkout.prong("run")
    assert done.code == 0, done.out + done.err
    assert "prepare   cached" in done.out
    states = set(checkout.run_states())
    assert "RUNNING" not in states
    assert "KILLED" in states or "FAILED" in states


def _with_ranks(pid: int, after: float) -> list[psutil.Process]:
    """Return all descendants of a run, `after` seconds since its first rank was started."""

    def ranks() -> list[psutil.Process]:
        family = psutil.Process(pid).children(recursive=True)
        return [p for p in family if "pipelines.training.rank" in " ".join(_command(p))]

    assert wait_until(lambda: len(ranks()) >= 2, 120), "no rank came up"  # torchrun and its rank
    time.sleep(after)
    return psutil.Process(pid).children(recursive=True)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []

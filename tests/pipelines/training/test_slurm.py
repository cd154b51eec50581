"""Slurm starts the ranks, for real: one controller and two node daemons on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import slurm_cluster
from clustered_job import ClusteredJob
from fork_server import Forked
from slurm_cluster import SlurmCluster
from small_checkout import make

from benchmarks import engines
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.systems.engines import submission
from pipelines.training import checkpoint, heartbeat

pytestmark = [
    pytest.mark.skipif(
        bool(slurm_cluster.MISSING),
        reason=f"no Slurm here: {slurm_cluster.MISSING} (apt-get install slurm-wlm munge)",
    ),
    pytest.mark.timeout(900),
]
LONG = ["train.epochs=12", "train.period=5", "train.batch=16", "supervision.checkpoint=9"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster.started(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, prepared: Path, database: Path, cluster: SlurmCluster
) -> ClusteredJob:
    checkout = make(tmp_path_factory.mktemp("clustered") / "job")
    layout = Layout(checkout.root)
    layout.state.mkdir()
    shutil.copy(database, layout.state / "mlflow.db")
    shutil.copytree(prepared, layout.prepared)
    job = ClusteredJob(checkout, cluster)
    job.set("train.device=cpu", "supervision.timeout=120")
    return job


def _local(job: ClusteredJob) -> bytes:
    """Train by two ranks of this machine, and return the bytes."""
    job.forget()
    job.set("cluster.engine=local", "supervision.nodes=1", "train.processes=2")
    done = job.train()
    assert done.code == 0, done.output
    weights = job.weights()
    job.forget()
    return weights


def _on_two_nodes(job: ClusteredJob) -> None:
    job.set(
        f"cluster.shared={job.checkout.root.parent}", "cluster.engine=slurm", "cluster.queue=''",
        "cluster.minutes=0", "supervision.nodes=2", "train.processes=1",
    )  # fmt: skip


def test_two_nodes_train(made: ClusteredJob) -> None:
    made.set("train.epochs=1", "train.period=5", "train.batch=64")  # 4 steps
    _on_two_nodes(made)
    done = made.train()
    assert done.code == 0, done.output + made.cluster.log()
    assert "Slurm job" in done.output
    assert "runs: on one,two" in done.output
    figures = json.loads((made.layout.reports / "train.json").read_text())
    assert (figures["processes"], figures["steps"]) == (2, 4)
    assert made.weights()
    assert made.cluster.jobs("PD,R") == []


@pytest.mark.slow
def test_the_benchmark_gives_the_seconds_to_the_first_step(
    made: ClusteredJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made.set(*LONG)
    _on_two_nodes(made)
    for name, value in made.cluster.environment.items():
        monkeypatch.setenv(name, value)
    engines.overhead(made.checkout.root, "slurm", nodes=2, times=1)
    table = capsys.readouterr().out
    print(table)
    assert re.search(r"\| local \| [0-9.]+ \|\n", table)
    assert re.search(r"\| slurm \| [0-9.]+ \|\n", table)
    assert _ended(made)


@pytest.fixture(scope="module")
def here(made: ClusteredJob) -> bytes:
    """The bytes of a longer training by two ranks of this machine."""
    made.set(*LONG)
    return _local(made)


@pytest.fixture
def job(made: ClusteredJob, here: bytes) -> Iterator[ClusteredJob]:
    """The longer training, not begun, to be run on two nodes."""
    made.set(*LONG)
    made.forget()
    _on_two_nodes(made)
    yield made
    shutil.rmtree(made.checkout.root / "engines", ignore_errors=True)
    for name in slurm_cluster.NODES:
        with suppress(AssertionError):  # it is not drained
            made.cluster.ask("scontrol", "update", f"nodename={name}", "state=resume")
    made.cluster.empty()


def _own_template(job: ClusteredJob, *lines: str) -> None:
    """Give the project a template of its own: that of the package with further lines."""
    shipped = Path(submission.__file__).with_name("train.sbatch").read_text()
    first, rest = shipped.split("\n", 1)
    folder = job.checkout.root / "engines"
    folder.mkdir()
    (folder / "train.sbatch").write_text("\n".join([first, *lines, rest]))


@contextmanager
def _at_work(job: ClusteredJob) -> Iterator[tuple[Forked, str]]:
    """Yield the stage and its job's id once the ranks train and have saved."""
    process = job.start()
    try:

        def trains() -> bool:
            assert process.running(), process.output() + job.cluster.log()
            return job.step() > 12 and job.checkpoints() > 0

        assert wait_until(trains, 240, pause=0.1), process.output()
        (only,) = job.cluster.jobs("R")
        yield process, only[0]
    finally:
        process.kill()


def _ended(job: ClusteredJob) -> bool:
    return wait_until(lambda: not job.cluster.jobs(), 60, pause=0.3)


@pytest.mark.slow
def test_two_nodes_train_the_same_bytes_as_two_ranks_here(job: ClusteredJob, here: bytes) -> None:
    done = job.train()
    assert done.code == 0, done.output + job.cluster.log()
    assert job.weights() == here


@pytest.mark.slow
def test_a_cancelled_job_is_said_and_the_same_command_goes_on(
    job: ClusteredJob, here: bytes
) -> None:
    with _at_work(job) as (process, number):
        job.cluster.ask("scancel", number)
        done = process.wait(120)
    assert done.code == 1
    assert f"error: Slurm job {number} was cancelled; the same command continues" in done.output
    again = job.train()
    assert again.code == 0, again.output
    assert "train: continues from step" in again.output
    assert job.weights() == here


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_flow_ends_the_job(job: ClusteredJob, here: bytes, signum: int) -> None:
    with _at_work(job) as (process, _):
        os.kill(process.pid, signum)
        done = process.wait(60)
        assert done.code != 0
        assert _ended(job), job.cluster.jobs()
        assert "stopped at step" in done.output
    saved = checkpoint.newest(next(job.layout.trainings.iterdir()) / "checkpoints")
    assert saved is not None
    assert saved.step > 12
    assert job.train().code == 0
    assert job.weights() == here


@pytest.mark.slow
def test_a_flow_that_died_finds_its_job_again(job: ClusteredJob, here: bytes) -> None:
    with _at_work(job) as (process, number):
        ranks = heartbeat.signs(_signs(job))
        for rank in ranks:
            rank.send(signal.SIGSTOP)
        process.kill()
        process.wait(20)
    job.set("cluster.engine=local", "supervision.nodes=1", "train.processes=2")
    refused = job.train()
    assert refused.code == 2
    assert f"Slurm job {number} runs this training or waits for its turn" in refused.output
    _on_two_nodes(job)
    again = job.start()
    follows = f"follows a job that an earlier run left: {number}"
    assert wait_until(lambda: follows in again.output() or not again.running(), 120)
    for rank in ranks:
        rank.send(signal.SIGCONT)
    done = again.wait(280)
    assert done.code == 0, done.output
    assert follows in done.output
    assert job.weights() == here
    assert [one for one in job.cluster.jobs("all") if int(one[0]) > int(number)] == []


@pytest.mark.slow
def test_a_requeued_job_goes_on_to_the_same_bytes(job: ClusteredJob, here: bytes) -> None:
    with _at_work(job) as (process, number):
        job.cluster.ask("scontrol", "requeue", number)
        done = process.wait(280)
    assert done.code == 0, done.output
    assert f"Slurm job {number} waits: " in done.output
    assert job.weights() == here
    assert json.loads((job.layout.reports / "train.json").read_text())["resumptions"] == 1


@pytest.mark.slow
def test_a_job_waits_for_drained_nodes_and_says_so(job: ClusteredJob, here: bytes) -> None:
    with _at_work(job) as (process, _):  # a drained node ends what it has begun
        job.cluster.ask("scontrol", "update", "nodename=two", "state=drain", "reason=test")
        assert process.wait(280).code == 0
    assert job.weights() == here
    job.forget()
    process = job.start()
    try:
        said = re.compile(r"waits: place 1 of 1 in partition main \(.*(two|DRAINED)")
        wait_until(lambda: said.search(process.output()) or not process.running(), 60)
        assert said.search(process.output()), process.output()
        job.cluster.ask("scontrol", "update", "nodename=two", "state=resume")
        assert process.wait(280).code == 0
    finally:
        process.kill()
    assert job.weights() == here


@pytest.mark.slow
def test_the_time_limit_is_reached_and_the_job_goes_on(job: ClusteredJob, here: bytes) -> None:
    with _at_work(job) as (process, number):
        ranks = heartbeat.signs(_signs(job))
        for rank in ranks:  # until Slurm's signal came, which it sends when it next looks
            rank.send(signal.SIGSTOP)
        minutes = int(job.cluster.ask("squeue", "-h", f"-j{number}", "-o%M").split(":")[-2]) + 2
        job.cluster.ask("scontrol", "update", f"jobid={number}", f"timelimit={minutes}")
        log = next(job.layout.trainings.iterdir()) / "torchrun.log"
        assert wait_until(lambda: "death signal" in log.read_text(), 180, pause=0.2)
        for rank in ranks:
            rank.send(signal.SIGCONT)
        goes_on = "goes on from its checkpoint when it is its turn again"
        assert wait_until(lambda: goes_on in log.read_text(), 120), log.read_text()
        job.cluster.ask("scontrol", "update", f"jobid={number}", "timelimit=60")
        done = process.wait(280)
    assert done.code == 0, done.output
    assert job.weights() == here


@pytest.mark.slow
def test_a_full_queue_is_waited_for_with_ones_place(job: ClusteredJob, here: bytes) -> None:
    others = [job.cluster.sleeper("--nodes=2", "--exclusive") for _ in range(2)]
    process = job.start()
    try:
        place = "place 2 of 2 in partition main ("
        assert wait_until(lambda: place in process.output() or not process.running(), 60)
        assert place in process.output()
        job.cluster.ask("scancel", *others)
        assert process.wait(280).code == 0
    finally:
        process.kill()
    assert job.weights() == here


@pytest.mark.slow
def test_what_can_never_start_names_the_settings(job: ClusteredJob) -> None:
    job.set("cluster.queue=nowhere")
    done = job.train()
    assert done.code == 2
    assert "error: cluster.queue = 'nowhere': " in done.output
    assert "allowed: main, short, or '' for the default" in done.output
    job.set("cluster.queue=short", "cluster.minutes=30")
    done = job.train()
    assert done.code == 2
    assert "cannot start: " in done.output
    assert "cluster.queue = 'short', cluster.minutes = 30" in done.output
    job.set("cluster.queue=''", "cluster.minutes=0", "supervision.nodes=5")
    done = job.train()
    assert done.code == 2
    assert "supervision.nodes = 5" in done.output
    job.set("supervision.nodes=2", "train.device=cuda")
    done = job.train()
    job.set("train.device=cpu")
    assert done.code == 2
    assert "error: train.device = 'cuda', train.processes = 1: " in done.output
    assert _ended(job)


@pytest.mark.slow
def test_a_ranks_error_comes_first(job: ClusteredJob) -> None:
    _own_template(job, "export PRONG_FAULT=train.step@1#20:raise")
    done = job.train()
    assert done.code == 1
    first = next(line for line in done.output.splitlines() if line.startswith("error: "))
    assert first.startswith("error: rank 1 of 2 failed, training at step ")
    assert "RuntimeError: PRONG_FAULT" in first
    assert _ended(job)


@pytest.mark.slow
def test_a_killed_rank_is_named(job: ClusteredJob) -> None:
    with _at_work(job) as (process, _):
        next(s for s in heartbeat.signs(_signs(job)) if s.rank == 1).send(signal.SIGKILL)
        done = process.wait(120)
    assert done.code == 1
    assert "error: rank 1 of 2 died without an error message, training at step" in done.output
    assert "(signal SIGKILL)" in done.output
    assert _ended(job)


def _signs(job: ClusteredJob) -> Path:
    return next(job.layout.trainings.iterdir()) / "ranks"


@pytest.mark.slow
def test_a_queue_that_takes_no_more_jobs_is_said(job: ClusteredJob) -> None:
    # The last test: Slurm counts these for some minutes after their end.
    waiting = slurm_cluster.MOST - len(job.cluster.jobs("all"))
    for _ in range(waiting):
        job.cluster.sleeper("--hold")
    done = job.train()
    assert done.code == 2
    assert "error: Slurm: " in done.output
    assert "temporarily unable to accept job" in done.output
    assert len(job.cluster.jobs()) == waiting

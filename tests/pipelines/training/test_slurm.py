"""Slurm starts the ranks, for real: one controller and two node daemons on loopback."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import fork_server
import psutil
import pytest
import slurm_cluster
from fork_server import Ended, Forked
from slurm_cluster import SlurmCluster
from small_checkout import Checkout, make

from pipelines.core import params_file
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(
        bool(slurm_cluster.MISSING),
        reason=f"no Slurm here: {slurm_cluster.MISSING} (apt-get install slurm-wlm munge)",
    ),
    pytest.mark.timeout(900),
]
LONG = ["train.epochs=120", "train.period=5", "supervision.checkpoint=9"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster.started(tmp_path_factory.mktemp("slurm")) as made:
        yield made


class Job:
    """A checkout whose stage train is run by both engines."""

    def __init__(self, checkout: Checkout, cluster: SlurmCluster) -> None:
        self.checkout, self.cluster = checkout, cluster
        self.layout = Layout(checkout.root)

    def set(self, *assignments: str) -> None:
        params_file.edit(self.layout.params, list(assignments))

    def start(self) -> Forked:
        """Start the stage as DVC does; its ranks are processes of the engine's."""
        env = self.checkout.environment(**self.cluster.environment)
        leaves = self.checkout.root.parent / "output"
        return fork_server.start(
            _stage, "train", leaves=leaves, cwd=self.checkout.root, env=env, exits=True
        )

    def train(self) -> Ended:
        return self.start().wait(300)

    def weights(self) -> bytes:
        return (self.layout.trained / "network.safetensors").read_bytes()

    def forget(self) -> None:
        shutil.rmtree(self.layout.trainings, ignore_errors=True)
        shutil.rmtree(self.layout.trained, ignore_errors=True)

    def step(self) -> int:
        """Return the furthest step of a rank."""
        found = [0]
        for path in self.layout.trainings.glob("*/ranks/rank-*.pulse"):
            with suppress(ValueError):
                found.append(int(json.loads(path.read_bytes())["step"]))
        return max(found)

    def checkpoints(self) -> int:
        return len(list(self.layout.trainings.glob("*/checkpoints/*")))


def _stage(name: str) -> int:
    from pipelines.pipeline import stages

    return stages.main([name])


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, prepared: Path, database: Path, cluster: SlurmCluster
) -> Job:
    checkout = make(tmp_path_factory.mktemp("clustered") / "job")
    layout = Layout(checkout.root)
    layout.state.mkdir()
    shutil.copy(database, layout.state / "mlflow.db")
    shutil.copytree(prepared, layout.prepared)
    job = Job(checkout, cluster)
    job.set("train.device=cpu", "supervision.timeout=120")
    return job


def _local(job: Job) -> bytes:
    """Train by two ranks of this machine, and return the bytes."""
    job.forget()
    job.set("cluster.engine=local", "supervision.nodes=1", "train.processes=2")
    done = job.train()
    assert done.code == 0, done.output
    weights = job.weights()
    job.forget()
    return weights


def _on_two_nodes(job: Job) -> None:
    job.set(
        f"cluster.shared={job.checkout.root.parent}", "cluster.engine=slurm", "cluster.queue=''",
        "cluster.minutes=0", "supervision.nodes=2", "train.processes=1",
    )  # fmt: skip


def test_two_nodes_train_the_same_bytes_as_two_ranks_here(made: Job) -> None:
    made.set("train.epochs=1", "train.period=5")
    here = _local(made)
    _on_two_nodes(made)
    done = made.train()
    assert done.code == 0, done.output + made.cluster.log()
    assert "Slurm job" in done.output
    assert "runs: on one,two" in done.output
    assert made.weights() == here
    assert json.loads((made.layout.reports / "train.json").read_text())["processes"] == 2
    assert made.cluster.jobs() == [] or made.cluster.jobs()[0][1] == "COMPLETING"

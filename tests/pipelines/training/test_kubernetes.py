"""Kubernetes starts the ranks; the API server is played, and what pods do is real."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="pip install 'prong[kubernetes]'")
pytest.importorskip("kubeflow_trainer_api", reason="pip install 'prong[kubernetes]'")
pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")

import fork_server
import kubernetes_api
from kubeflow_trainer_api import models
from kubernetes import client
from kubernetes_api import FakeCluster
from small_checkout import Checkout, make

from pipelines.core import params_file
from pipelines.core.config import ClusterConfig
from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.systems.engines import manifest
from pipelines.systems.engines.kubernetes import TrainJobs
from pipelines.systems.engines.submission import JobRequest, JobStatus

CLUSTER = ClusterConfig(
    engine="kubernetes", shared="/shared", image="registry/prong:1", claim="data", namespace="ns"
)
REQUEST = JobRequest(
    name="prong-0123456789abcdef-01234567",
    command=("python", "-m", "pipelines.training.agent", "a b", "--nnodes", "2"),
    nodes=2,
    per_node=4,
    processors=3,
    gpus=4,
    folder=Path("/shared/project"),
    log=Path("/shared/project/log"),
    seen=Path("/shared/project/job.json"),
    saved=Path("/shared/project/checkpoints"),
    env={"OMP_NUM_THREADS": "3"},
)


def test_the_manifest_is_what_trainers_models_read_and_write() -> None:
    cluster = replace(CLUSTER, queue="team", minutes=90)
    body = manifest.train_job(REQUEST, cluster)
    assert models.TrainerV1alpha1TrainJob.from_json(json.dumps(body)).to_dict() == body
    spec, trainer = body["spec"], body["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert tuple(trainer["args"]) == REQUEST.command
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "12", "nvidia.com/gpu": "4"}
    assert spec["activeDeadlineSeconds"] == 5400
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    pod = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = pod["template"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "data"}
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/shared"
    assert pod["securityContext"]["runAsNonRoot"] is True
    plain = manifest.train_job(replace(REQUEST, gpus=0), CLUSTER)
    assert "activeDeadlineSeconds" not in plain["spec"]
    assert "nvidia.com/gpu" not in plain["spec"]["trainer"]["resourcesPerNode"]["limits"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Job", "must be one object of kind TrainJob"),
        ("kind: [", "cannot be read"),
        ("kind: TrainJob\nspec: 3", "spec must be a mapping"),
        ("kind: TrainJob\nspec: {runtimeRef: {name: x}, nodeSelector: {a: b}}",
         "spec.nodeSelector: a TrainJob of .* has no such key"),
        ("kind: TrainJob\nspec: {}", "not a TrainJob"),
    ],
)  # fmt: skip
def test_a_wrong_template_is_a_users_mistake(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "trainjob.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as raised:
        manifest.train_job(replace(REQUEST, template=path), CLUSTER)
    assert str(path) in str(raised.value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeCluster]:
    with kubernetes_api.serving(tmp_path) as made:
        yield made


@pytest.fixture
def engine(server: FakeCluster) -> Iterator[TrainJobs]:
    configuration = client.Configuration(host=server.url)
    configuration.retries = False
    with client.ApiClient(configuration) as api:
        yield TrainJobs(CLUSTER, api)


def test_a_job_is_created_once_and_found_again(server: FakeCluster, engine: TrainJobs) -> None:
    assert engine.find(REQUEST.name) is None
    assert engine.submit(REQUEST) == REQUEST.name
    first = server.jobs[REQUEST.name]["metadata"]["uid"]
    assert engine.submit(REQUEST) == REQUEST.name  # a conflict: it runs already
    assert server.jobs[REQUEST.name]["metadata"]["uid"] == first
    assert engine.find(REQUEST.name) == REQUEST.name
    server.say(REQUEST.name, "Failed", "FailedJobs", "one failed")
    assert engine.find(REQUEST.name) is None
    engine.submit(REQUEST)  # in its place
    assert server.jobs[REQUEST.name]["metadata"]["uid"] != first
    engine.cancel(REQUEST.name)
    assert engine.poll(REQUEST.name) == JobStatus("ended", "cancelled", "it was deleted")
    engine.cancel(REQUEST.name)  # of what is gone already


def _pods(server: FakeCluster) -> list[dict[str, Any]]:
    return [pod.body for pod in server.pods[REQUEST.name]]


def test_what_pods_wait_for_and_where_they_run_is_said(
    server: FakeCluster, engine: TrainJobs
) -> None:
    engine.submit(REQUEST)
    server.say(REQUEST.name, "Suspended", "Suspended", "no quota")
    assert engine.poll(REQUEST.name) == JobStatus("waiting", "", "suspended (Suspended: no quota)")
    server.jobs[REQUEST.name]["status"] = {}
    one, two = _pods(server)
    one["status"]["phase"] = "Running"
    two["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
         "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}
    ]  # fmt: skip
    status = engine.poll(REQUEST.name)
    assert (status.phase, status.how) == ("waiting", "")
    assert status.said.startswith("1 of 2 pods run (Unschedulable: 0/3 nodes are available")
    two["status"]["conditions"] = []
    two["status"]["containerStatuses"] = [
        {"name": "node", "image": "x", "imageID": "", "ready": False, "restartCount": 0,
         "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    ]  # fmt: skip
    assert engine.poll(REQUEST.name).how == "never"
    del two["status"]["containerStatuses"]
    two["status"]["phase"] = "Running"
    assert engine.poll(REQUEST.name) == JobStatus("running", "", "on worker-0,worker-1")


def test_why_a_job_failed_is_read_from_its_pods(server: FakeCluster, engine: TrainJobs) -> None:
    engine.submit(REQUEST)
    server.say(REQUEST.name, "Failed", "FailedJobs", "one failed")
    assert engine.poll(REQUEST.name).how == "failed"
    server.say(REQUEST.name, "Failed", "DeadlineExceeded", "active deadline exceeded")
    assert engine.poll(REQUEST.name).how == "time"
    _pods(server)[0]["status"]["containerStatuses"] = [
        {"name": "node", "image": "x", "imageID": "", "ready": False, "restartCount": 0,
         "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
    ]  # fmt: skip
    assert engine.poll(REQUEST.name).how == "memory"
    server.evict(REQUEST.name, 0)
    assert engine.poll(REQUEST.name).how == "lost"


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (500, Unavailable, "leader changed"),
        (429, Unavailable, "429"),
        (403, UserError, "docs/clusters.md"),
        (422, UserError, "engines/trainjob.yaml"),
    ],
)
def test_the_servers_errors_are_an_engines(
    server: FakeCluster, engine: TrainJobs, code: int, error: type[Exception], said: str
) -> None:
    server.failing = [code]
    with pytest.raises(error, match=said):
        engine.submit(REQUEST)
    assert not server.jobs


def test_a_silent_server_is_unavailable() -> None:
    configuration = client.Configuration(host="http://127.0.0.1:9")
    configuration.retries = False
    with client.ApiClient(configuration) as api, pytest.raises(Unavailable, match="Kubernetes: "):
        TrainJobs(CLUSTER, api).find("x")


def _stage(name: str) -> int:
    from pipelines.pipeline import stages

    return stages.main([name])


def _start(checkout: Checkout, server: FakeCluster) -> fork_server.Forked:
    env = checkout.environment(KUBECONFIG=str(server.kubeconfig()))
    leaves = checkout.root.parent / "output"
    return fork_server.start(_stage, "train", leaves=leaves, cwd=checkout.root, env=env, exits=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_evicted_and_a_cancelled_job_go_on_to_the_bytes_of_two_ranks_here(
    tmp_path: Path, prepared: Path, database: Path
) -> None:
    checkout = make(tmp_path / "job")
    layout = Layout(checkout.root)
    layout.state.mkdir()
    shutil.copy(database, layout.state / "mlflow.db")
    shutil.copytree(prepared, layout.prepared)
    params = [
        "train.epochs=12", "train.period=5", "supervision.checkpoint=9", "train.device=cpu",
        "train.processes=2",
    ]  # fmt: skip
    params_file.edit(layout.params, params)
    weights = layout.trained / "network.safetensors"
    with kubernetes_api.serving(tmp_path) as server:
        server.runs = True
        done = _start(checkout, server).wait(280)
        assert done.code == 0, done.output
        here = weights.read_bytes()
        assert server.requests == []
        shutil.rmtree(layout.trainings)
        weights.unlink()
        params_file.edit(layout.params, [
            f"cluster.shared={tmp_path}", "cluster.image=prong:1", "cluster.claim=data",
        ])  # fmt: skip
        params_file.edit(layout.params, [
            "cluster.engine=kubernetes", "supervision.nodes=2", "train.processes=1",
        ])  # fmt: skip
        process = _start(checkout, server)

        def at_work(least: int) -> bool:
            assert process.running(), process.output()
            steps = [0]
            for path in layout.trainings.glob("*/ranks/rank-*.pulse"):
                with suppress(ValueError):
                    steps.append(int(json.loads(path.read_bytes())["step"]))
            return max(steps) > least and any(layout.trainings.glob("*/checkpoints/*"))

        assert wait_until(lambda: at_work(12), 240, pause=0.1)
        (name,) = server.jobs
        server.evict(name, 1)
        assert wait_until(lambda: "submitted again" in process.output(), 120), process.output()
        assert wait_until(lambda: at_work(30), 240, pause=0.1)
        os.kill(process.pid, signal.SIGTERM)
        ended = process.wait(60)
        assert "stopped at step" in ended.output, ended.output
        assert ("DELETE", f"{kubernetes_api._JOBS}/{name}?propagationPolicy=Foreground") in (
            server.requests
        )
        done = _start(checkout, server).wait(280)
        assert done.code == 0, done.output
        assert weights.read_bytes() == here

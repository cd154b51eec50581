"""An API server of Kubernetes as far as an engine asks it, with a stand-in for what follows.

Its answers have the form of the real ones: objects are checked by the models of Kubeflow Trainer's
API and pods by the schemas of Kubernetes. What the controller and the nodes would do, it does in a
simple way: a TrainJob's pods run their command as processes of this machine, in the environment
that Trainer's torch runtime gives them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubeflow_trainer_api import models
from kubernetes_validate import validate
from rank_processes import free_port

_NOW = "2026-11-27T12:00:00Z"
_JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ns/trainjobs"
_PODS = "/api/v1/namespaces/ns/pods"


@dataclass
class FakePod:
    """A pod and its process."""

    body: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None


@dataclass
class FakeCluster:
    """What the server holds.

    Attributes:
        folder: For what pods print.
        url: Where it listens.
        runs: Whether pods run their command; else a test says how they stand.
        requests: Method and path of every request.
        failing: HTTP status that the next requests get, one each.
    """

    folder: Path
    url: str = ""
    runs: bool = False
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, list[FakePod]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    failing: list[int] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def kubeconfig(self) -> Path:
        """Write a file by which clients find it."""
        path = self.folder / "kubeconfig"
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context":
                          {"cluster": "fake", "user": "fake", "namespace": "ns"}}],
        }))  # fmt: skip
        return path

    def create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Store a TrainJob and start its pods."""
        name = body["metadata"]["name"]
        if name in self.jobs:
            message = f'trainjobs.trainer.kubeflow.org "{name}" already exists'
            return 409, _status(409, "AlreadyExists", message)
        try:
            parsed = models.TrainerV1alpha1TrainJob.from_dict(body)
        except ValueError as error:
            return 422, _status(422, "Invalid", str(error))
        kept: dict[str, Any] = parsed.to_dict()
        kept["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": _NOW, "namespace": "ns"}
        self.jobs[name], self.pods[name] = kept, []
        port = free_port()
        for rank in range(kept["spec"]["trainer"]["numNodes"]):
            self.pods[name].append(self._pod(name, kept, rank, port))
        return 201, kept

    def _pod(self, job: str, kept: dict[str, Any], rank: int, port: int) -> FakePod:
        trainer = kept["spec"]["trainer"]
        name = f"{job}-node-0-{rank}-{uuid.uuid4().hex[:5]}"
        container = {
            "name": "node", "image": trainer["image"], "command": trainer["command"],
            "args": trainer["args"], "env": trainer["env"],
            "resources": trainer["resourcesPerNode"],
        }  # fmt: skip
        body = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "ns", "uid": str(uuid.uuid4()),
                         "labels": {"jobset.sigs.k8s.io/jobset-name": job}},
            "spec": {"containers": [container], "nodeName": f"worker-{rank}",
                     "restartPolicy": "Never"},
            "status": {"phase": "Running" if self.runs else "Pending", "conditions": []},
        }  # fmt: skip
        validate(body, "1.33", strict=True)
        pod = FakePod(body)
        if self.runs:
            env = {
                **{each["name"]: each["value"] for each in trainer["env"]},
                "PATH": os.environ["PATH"], "HOSTNAME": name, "HOME": str(self.folder),
                "PET_NNODES": str(trainer["numNodes"]), "PET_NODE_RANK": str(rank),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port),
            }  # fmt: skip
            pod.log = self.folder / f"{name}.log"
            with pod.log.open("wb") as out:
                pod.process = subprocess.Popen(
                    [*trainer["command"], *trainer["args"]], env=env, cwd=self.folder,
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                )  # fmt: skip
        return pod

    def look(self) -> None:
        """Do what the controller does: say of jobs how they ended, and delete what is to go."""
        for name, job in list(self.jobs.items()):
            codes = [pod.process.poll() for pod in self.pods[name] if pod.process]
            if job["metadata"].get("deletionTimestamp"):
                if None not in codes:
                    del self.jobs[name], self.pods[name]
                continue
            if codes and not job.get("status"):
                if codes == [0] * len(codes):
                    self.say(name, "Complete", "JobsCompleted", "jobset completed successfully")
                elif any(codes):
                    self.end(name, signal.SIGTERM)
                    self.say(name, "Failed", "FailedJobs", "jobset failed due to one or more jobs")

    def say(self, name: str, kind: str, reason: str, message: str) -> None:
        """Give a TrainJob a condition that holds."""
        condition = {"type": kind, "status": "True", "reason": reason, "message": message,
                     "lastTransitionTime": _NOW}  # fmt: skip
        self.jobs[name]["status"] = {"conditions": [condition]}

    def end(self, name: str, signum: int) -> None:
        """Signal all processes of a job's pods."""
        for pod in self.pods[name]:
            if pod.process and pod.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(pod.process.pid, signum)

    def evict(self, name: str, rank: int) -> None:
        """Take a pod from its node, as a node short of memory does; the job fails by it."""
        with self.lock:
            pod = self.pods[name][rank]
            pod.body["status"] = {
                "phase": "Failed", "reason": "Evicted",
                "message": "The node was low on resource: memory.",
                "conditions": [{"type": "DisruptionTarget", "status": "True",
                                "reason": "TerminationByKubelet", "lastTransitionTime": _NOW}],
            }  # fmt: skip
            validate(pod.body, "1.33", strict=True)
            self.end(name, signal.SIGTERM)

    def close(self) -> None:
        """End every process."""
        for name in self.pods:
            self.end(name, signal.SIGKILL)
            for pod in self.pods[name]:
                if pod.process:
                    pod.process.wait(20)


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": message,
            "reason": reason, "code": code, "metadata": {}}  # fmt: skip


@contextmanager
def serving(folder: Path) -> Iterator[FakeCluster]:
    """Serve on loopback until the end of the block."""
    cluster = FakeCluster(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _handle(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with cluster.lock:
                cluster.requests.append((self.command, self.path))
                cluster.look()
                if cluster.failing:
                    code = cluster.failing.pop(0)
                    said: Any = _status(code, "InternalError", "etcdserver: leader changed")
                else:
                    code, said = _answer(cluster, self.command, self.path, content)
            text = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            kind = "text/plain" if isinstance(said, str) else "application/json"
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = _handle

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        cluster.close()


def _answer(cluster: FakeCluster, method: str, path: str, content: bytes) -> tuple[int, Any]:
    place = urlsplit(path)
    if place.path == _JOBS and method == "POST":
        return cluster.create(json.loads(content))
    if place.path.startswith(f"{_JOBS}/"):
        name = place.path.rpartition("/")[2]
        if name not in cluster.jobs:
            message = f'trainjobs.trainer.kubeflow.org "{name}" not found'
            return 404, _status(404, "NotFound", message)
        if method == "DELETE":
            cluster.jobs[name]["metadata"]["deletionTimestamp"] = _NOW
            cluster.end(name, signal.SIGTERM)
        return 200, cluster.jobs[name]
    if place.path == _PODS:
        job = parse_qs(place.query)["labelSelector"][0].partition("=")[2]
        items = [pod.body for pod in cluster.pods.get(job, [])]
        return 200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}
    if place.path.startswith(f"{_PODS}/") and place.path.endswith("/log"):
        name = place.path.split("/")[-2]
        found = [
            p for pods in cluster.pods.values() for p in pods if p.body["metadata"]["name"] == name
        ]
        if found and found[0].log:
            return 200, found[0].log.read_text()
        return 400, _status(400, "BadRequest", "container is waiting to start")
    return 404, _status(404, "NotFound", "the server could not find the requested resource")

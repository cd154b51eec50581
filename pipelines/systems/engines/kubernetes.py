"""Kubernetes: TrainJobs of Kubeflow Trainer. Only this room asks the API server.

A job's name is fixed, so a second one with it is a conflict, and the first is followed. An ended
job with this name is deleted before another is created.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.core.config import ClusterConfig
from pipelines.core.errors import Failed, Unavailable, UserError
from pipelines.core.waiting import wait_until
from pipelines.systems.engines.submission import How, JobRequest, JobStatus

try:
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    from pipelines.systems.engines.manifest import train_job
except ImportError as missing:
    raise UserError(
        f"cluster.engine = 'kubernetes': {missing.name} is not installed; "
        "pip install 'prong[kubernetes]'"
    ) from None

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"
"""Label of a TrainJob's pods: its name."""
_SECONDS = (10, 30)  # to connect, and for an answer
_DELETION = 120.0  # seconds for an ended job to go
_TAIL = 50  # lines of a pod's log
_NEVER = re.compile(
    r"ErrImagePull|ImagePullBackOff|InvalidImageName|ErrImageNeverPull|CreateContainerConfigError"
    r"|CreateContainerError|RunContainerError"
)
"""Reasons for which a container waits that do not pass by waiting."""
_GONE = frozenset(("Evicted", "Preempted", "Shutdown", "NodeLost", "Terminated", "NodeShutdown"))

_Text = Annotated[str, Field(max_length=10_000)]


class _Said(BaseModel):
    """Part of an answer: known fields are checked, others are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Condition(_Said):
    """A condition of a TrainJob or a pod."""

    type: _Text
    status: _Text
    reason: _Text | None = None
    message: _Text | None = None


class _Metadata(_Said):
    name: _Text
    uid: _Text = ""
    deletion: _Text | None = Field(None, alias="deletionTimestamp")


class _JobState(_Said):
    conditions: Annotated[list[Condition], Field(max_length=100)] = []


class TrainJobSaid(_Said):
    """A TrainJob, as far as it is read."""

    metadata: _Metadata
    status: _JobState = _JobState()

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of a type if it holds."""
        return next(
            (c for c in self.status.conditions if c.type == kind and c.status == "True"), None
        )


class TrainJobs:
    """TrainJobs of Kubeflow Trainer; see `Engine`."""

    title = "TrainJob"

    def __init__(self, cluster: ClusterConfig, api: client.ApiClient | None = None) -> None:
        """Connect as kubectl does, or as a pod of the cluster.

        Args:
            cluster: The settings.
            api: Another connection.

        Raises:
            UserError: If there is no configuration.
        """
        self._cluster, namespace = cluster, cluster.namespace
        if api is None:
            try:
                config.load_config(**_config_file())
            except (config.ConfigException, OSError) as error:
                raise UserError(
                    f"cluster.engine = 'kubernetes': no access to a cluster ({error}); set "
                    "KUBECONFIG, or run prong in a pod with a service account"
                ) from None
            namespace = namespace or _context_namespace()
        self._namespace = namespace or "default"
        self._jobs, self._pods = client.CustomObjectsApi(api), client.CoreV1Api(api)

    def submit(self, request: JobRequest) -> str:
        """Create the TrainJob and return its name; one that runs already is kept.

        Raises:
            UserError: If the template is wrong, or the API server refuses the object.
            Unavailable: If it does not answer.
        """
        body = train_job(request, self._cluster)
        for _ in range(3):
            try:
                with _answering():
                    self._jobs.create_namespaced_custom_object(
                        *self._where, body, field_manager="prong", _request_timeout=_SECONDS
                    )
            except _NameTaken:
                if self.find(request.name):
                    return request.name
                self._remove(request.name)  # it has ended
            else:
                return request.name
        raise Failed(f"TrainJob {request.name}: it is created and deleted by others all the time")

    def find(self, name: str) -> str | None:
        """Return the name if there is such a job and it has not ended, else None."""
        found = self._get(name)
        if found is None or found.metadata.deletion:
            return None
        return None if found.condition("Complete") or found.condition("Failed") else name

    def poll(self, job: str) -> JobStatus:
        """Return how a job stands; one that was deleted counts as cancelled."""
        found = self._get(job)
        if found is None:
            return JobStatus("ended", "cancelled", "it was deleted")
        if found.condition("Complete"):
            return JobStatus("ended", "done", "")
        pods = self._pods_of(job)
        if failed := found.condition("Failed"):
            return JobStatus("ended", _why(failed, pods), _words(failed))
        if suspended := found.condition("Suspended"):
            return JobStatus("waiting", "", f"suspended ({_words(suspended)})")
        nodes = [pod.spec.node_name for pod in pods if pod.status.phase == "Running"]
        if pods and len(nodes) == len(pods):
            return JobStatus("running", "", f"on {','.join(sorted(map(str, nodes)))}")
        reasons = list(dict.fromkeys(filter(None, map(_waits_for, pods))))
        said = f"{len(nodes)} of {len(pods)} pods run ({'; '.join(reasons) or 'no reason given'})"
        never = any(_NEVER.search(reason) for reason in reasons)
        return JobStatus("waiting", "never" if never else "", said)

    def logs(self, job: str) -> str:
        """Return the last lines of each pod's output."""
        parts = []
        for pod in self._pods_of(job):
            try:
                with _answering():
                    text = self._pods.read_namespaced_pod_log(
                        pod.metadata.name, self._namespace, tail_lines=_TAIL,
                        _request_timeout=_SECONDS,
                    )  # fmt: skip
            except (Failed, UserError):
                continue  # its container has not started
            parts.append(f"{pod.metadata.name}:\n{str(text)[-10_000:]}")
        return "\n".join(parts)

    def cancel(self, job: str) -> None:
        """Delete a job: its pods get SIGTERM, and SIGKILL after their grace period."""
        try:
            with _answering():
                self._jobs.delete_namespaced_custom_object(
                    *self._where, job, propagation_policy="Foreground", _request_timeout=_SECONDS
                )
        except _NoSuchJob:
            return

    @property
    def _where(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self._namespace, PLURAL

    def _remove(self, job: str) -> None:
        self.cancel(job)
        if not wait_until(lambda: self._get(job) is None, _DELETION, pause=0.2, longest=2.0):
            raise Unavailable(f"TrainJob {job}: was deleted and is still there")

    def _get(self, job: str) -> TrainJobSaid | None:
        try:
            with _answering():
                found = self._jobs.get_namespaced_custom_object(
                    *self._where, job, _request_timeout=_SECONDS
                )
        except _NoSuchJob:
            return None
        try:
            return TrainJobSaid.model_validate(found)
        except ValidationError as error:
            raise Failed(f"TrainJob {job}: the API server's answer is none: {error}") from None

    def _pods_of(self, job: str) -> list[Any]:
        with _answering():
            found = self._pods.list_namespaced_pod(
                self._namespace, label_selector=f"{JOB_LABEL}={job}", _request_timeout=_SECONDS
            )
        # A pod that was evicted stays for a while beside the one that replaced it.
        return [pod for pod in found.items if pod.status and pod.metadata]


class _NameTaken(Failed):
    """There is an object with this name."""


class _NoSuchJob(Failed):
    """There is no object with this name."""


@contextmanager
def _answering() -> Iterator[None]:
    """Turn the client's errors into those of an engine."""
    try:
        yield
    except ApiException as error:
        said = f"Kubernetes: {error.status} {error.reason}: {str(error.body or '')[:500]}"
        match error.status:
            case 404:
                raise _NoSuchJob(said) from None
            case 409:
                raise _NameTaken(said) from None
            case 400 | 422:
                raise UserError(f"{said}; look at engines/trainjob.yaml and cluster.*") from None
            case 401 | 403:
                raise UserError(
                    f"{said}; docs/clusters.md lists what prong must be allowed"
                ) from None
        raise Unavailable(said) from None
    except (HTTPError, OSError) as error:
        raise Unavailable(f"Kubernetes: {' '.join(str(error).split())[:300]}") from None


def _config_file() -> dict[str, str]:
    """Return the argument that names kubectl's file; the client reads its variable on import."""
    given = os.environ.get("KUBECONFIG")
    return {"config_file": given} if given else {}


def _context_namespace() -> str:
    try:
        _, active = config.list_kube_config_contexts(**_config_file())
    except config.ConfigException:  # in a pod
        try:
            with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
                return file.read(253).strip()
        except OSError:
            return ""
    return str((active or {}).get("context", {}).get("namespace", ""))


def _words(condition: Condition) -> str:
    return ": ".join(filter(None, (condition.reason, condition.message))) or condition.type


def _why(failed: Condition, pods: list[Any]) -> How:
    """Return why a job failed: what its pods say is nearer to the cause than its own condition."""
    for pod in pods:
        kinds = {c.type for c in pod.status.conditions or [] if c.status == "True"}
        if pod.status.reason in _GONE or "DisruptionTarget" in kinds:
            return "lost"
        for state in pod.status.container_statuses or []:
            ended = state.state and state.state.terminated
            if ended and ended.reason == "OOMKilled":
                return "memory"
    return "time" if "deadline" in _words(failed).lower() else "failed"


def _waits_for(pod: Any) -> str:
    """Return why a pod does not run; empty if it does."""
    for state in pod.status.container_statuses or []:
        waiting = state.state and state.state.waiting
        if waiting and waiting.reason:
            return ": ".join(filter(None, (waiting.reason, waiting.message)))
    for one in pod.status.conditions or []:
        if one.type == "PodScheduled" and one.status == "False":
            return ": ".join(filter(None, (one.reason, one.message)))
    return ""

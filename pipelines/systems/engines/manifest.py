"""The TrainJob that is submitted to Kubernetes: a template and a request, checked as one object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kubeflow_trainer_api import models
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.core.config import ClusterConfig
from pipelines.core.errors import UserError
from pipelines.systems.engines.submission import TRAINJOB, JobRequest

NAME_LABEL, MANAGED_BY = "app.kubernetes.io/name", "app.kubernetes.io/managed-by"
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_LONGEST = 100_000  # bytes of a template
_SCRIPT = """\
if ! [ -r "$PRONG_SEEN" ]; then
  echo "pod $HOSTNAME does not see $PRONG_SEEN: cluster.claim must be mounted at cluster.shared" >&2
  exit 72
fi
cd "$PRONG_FOLDER" || exit 72
export PET_RDZV_ENDPOINT="$PET_MASTER_ADDR:$PET_MASTER_PORT"
export PET_RDZV_CONF="is_host=$((PET_NODE_RANK == 0)),join_timeout=$PRONG_PATIENCE"
exec "$@"
"""
"""What a node runs before the command: Trainer has named the first node in its environment."""


def train_job(request: JobRequest, cluster: ClusterConfig) -> dict[str, Any]:
    """Return the TrainJob of a request, checked by the models of Kubeflow Trainer's API.

    Raises:
        UserError: If the template cannot be read, or holds what a TrainJob has not.
    """
    path = request.template or Path(__file__).with_name(TRAINJOB)
    body = _filled(_read(path), {"CLAIM": cluster.claim, "SHARED": cluster.shared})
    metadata, spec = _part(path, body, "metadata"), _part(path, body, "spec")
    metadata["name"] = request.name
    labels = _part(path, metadata, "labels")
    labels |= {NAME_LABEL: "prong", MANAGED_BY: "prong"}
    if cluster.queue:
        labels[_QUEUE_LABEL] = cluster.queue
    if cluster.minutes:
        spec["activeDeadlineSeconds"] = 60 * cluster.minutes
    trainer = _part(path, spec, "trainer")
    trainer |= {
        "image": cluster.image,
        "command": ["sh", "-c", _SCRIPT, "node"],
        "args": list(request.command),
        "numNodes": request.nodes,
        "numProcPerNode": request.per_node,
    }
    given = {
        **request.env,
        "PRONG_FOLDER": str(request.folder),
        "PRONG_SEEN": str(request.seen),
        "PRONG_SAVED": str(request.saved),
    }
    own = [one for one in trainer.get("env") or [] if one.get("name") not in given]
    trainer["env"] = own + [{"name": name, "value": given[name]} for name in sorted(given)]
    resources = _part(path, trainer, "resourcesPerNode")
    wanted = {"cpu": str(request.per_node * request.processors)}
    if request.gpus:
        wanted["nvidia.com/gpu"] = str(request.gpus)
    for key in ("requests", "limits"):
        resources[key] = {**(resources.get(key) or {}), **wanted}
    return checked(body, str(path))


def checked(body: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a TrainJob as the models of Kubeflow Trainer's API write it.

    Args:
        body: The object.
        where: It came from, for messages.

    Raises:
        UserError: If a value is wrong, or a key is none of a TrainJob's.
    """
    try:
        parsed = models.TrainerV1alpha1TrainJob.from_dict(body)
    except (ValidationError, ValueError, TypeError, AttributeError, KeyError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"{where}: not a TrainJob of trainer.kubeflow.org/v1alpha1: {said}"
        ) from None
    written: dict[str, Any] = parsed.to_dict()
    if lost := _lost(body, written):
        raise UserError(
            f"{where}: {lost}: a TrainJob of trainer.kubeflow.org/v1alpha1 has no such key"
        )
    return written


def _lost(given: Any, written: Any, at: str = "") -> str:
    """Return the first key of `given` that `written` lacks; empty if there is none."""
    if isinstance(given, dict) and isinstance(written, dict):
        for key, value in given.items():
            place = f"{at}.{key}".lstrip(".")
            if value is not None and key not in written:
                return place
            if found := _lost(value, written.get(key), place):
                return found
    if isinstance(given, list) and isinstance(written, list):
        for number, (one, other) in enumerate(zip(given, written, strict=False)):
            if found := _lost(one, other, f"{at}[{number}]"):
                return found
    return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        if len(content) > _LONGEST:
            raise UserError(f"{path}: {len(content)} bytes; a template has at most {_LONGEST}")
        found = YAML(typ="safe").load(content.decode())
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or found.get("kind") != "TrainJob":
        raise UserError(f"{path}: must be one object of kind TrainJob")
    return found


def _filled(value: Any, words: dict[str, str]) -> Any:
    """Return a template with whole values replaced."""
    if isinstance(value, dict):
        return {key: _filled(each, words) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, words) for each in value]
    return words.get(value, value) if isinstance(value, str) else value


def _part(path: Path, body: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a mapping of an object, made if it is absent."""
    if body.get(key) is None:
        body[key] = {}
    if not isinstance(body[key], dict):
        raise UserError(f"{path}: {key} must be a mapping")
    found: dict[str, Any] = body[key]
    return found

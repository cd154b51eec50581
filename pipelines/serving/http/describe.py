"""What the server says about itself, its model and its settings."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipelines.serving.http.live import ALIAS, Live, Loaded
from pipelines.serving.http.settings import ServeSettings
from pipelines.serving.http.tensors import Tensor

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")
"""Extensions of the protocol that are served; `model_repository` only as an index."""
PLATFORM = "onnxruntime_onnx"
_TYPES = {"BYTES": "TYPE_STRING"}


def server() -> dict[str, Any]:
    """Return the metadata of the server."""
    try:
        number = version("prong")
    except PackageNotFoundError:
        number = "unknown"
    return {"name": "prong", "version": number, "extensions": [*EXTENSIONS]}


def model(name: str, loaded: Loaded) -> dict[str, Any]:
    """Return the metadata of the version that answers."""
    signature = loaded.signature
    return {
        "name": name,
        "versions": [str(loaded.version)],
        "platform": PLATFORM,
        "inputs": [_metadata(tensor) for tensor in signature.inputs],
        "outputs": [_metadata(tensor) for tensor in signature.outputs],
        "parameters": {"alias": ALIAS, "sha256": loaded.sha256},
    }


def _metadata(tensor: Tensor) -> dict[str, Any]:
    shape = [-1, *tensor.shape]
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": shape}


def config(name: str, loaded: Loaded, settings: ServeSettings) -> dict[str, Any]:
    """Return the configuration as Triton's clients read it."""
    signature = loaded.signature
    form = signature.form
    told: dict[str, Any] = {
        "name": name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [loaded.version]}},
        "max_batch_size": settings.max_batch,
        "input": [_config(tensor) for tensor in signature.inputs],
        "output": [_config(tensor) for tensor in signature.outputs],
        "dynamic_batching": {
            "max_queue_delay_microseconds": round(settings.batch_delay_ms * 1000),
            "default_queue_policy": {"max_queue_size": settings.queue},
        },
        "parameters": {
            "alias": {"string_value": ALIAS},
            "sha256": {"string_value": loaded.sha256},
            "provider": {"string_value": loaded.model.provider},
            "task": {"string_value": form.task},
        },
    }
    lists = {
        "classes": form.classes,
        "values": [value.name for value in form.values],
        "numbers": [form.columns[at].name for at in form.numbers],
        "categories": [form.columns[at].name for at in form.categories],
    }
    for key, names in lists.items():
        if names:
            text = json.dumps(names, ensure_ascii=False)
            told["parameters"][key] = {"string_value": text}
    return told


def _config(tensor: Tensor) -> dict[str, Any]:
    kind = _TYPES.get(tensor.datatype, f"TYPE_{tensor.datatype}")
    return {"name": tensor.name, "data_type": kind, "dims": [*tensor.shape]}


def index(live: Live, draining: bool) -> list[dict[str, str]]:
    """Return the models of the repository: the one that answers."""
    if not live.ready:
        reason = "no released version is loaded yet"
        return [{"name": live.name, "version": "", "state": "UNAVAILABLE", "reason": reason}]
    number = str(live.current.version)
    if draining:
        reason = "the server is ending"
        return [{"name": live.name, "version": number, "state": "UNAVAILABLE", "reason": reason}]
    return [{"name": live.name, "version": number, "state": "READY", "reason": ""}]


def health(live: Live, *, draining: bool, waiting: int, lost: int, log: str) -> dict[str, Any]:
    """Return the state of the server for people.

    Args:
        live: The version that answers.
        draining: Whether the server is ending.
        waiting: Requests that wait for the model.
        lost: Requests that the log could not keep.
        log: Why it could not, the last time; empty if it can.
    """
    told: dict[str, Any] = {
        "ready": live.ready and not draining,
        "draining": draining,
        "model": live.name,
        "alias": ALIAS,
        "problems": [*live.problems, *([f"request log: {log}"] if log else [])],
        "waiting": waiting,
        "reloads": live.swaps,
        "log_lost": lost,
    }
    if live.ready:
        loaded = live.current
        told |= {
            "version": loaded.version,
            "sha256": loaded.sha256,
            "since": loaded.since.isoformat(timespec="seconds"),
            "provider": loaded.model.provider,
            "takes": [f"{one.name}: {one.told()}" for one in loaded.signature.inputs],
            "gives": [f"{one.name}: {one.told()}" for one in loaded.signature.outputs],
            "drift": None if loaded.drift is None else loaded.drift.card.method,
        }
    return told

"""Uploads, which MLflow calls logged models: a folder of files that may become a version.

A call raises what MLflow raises; run it inside `answering`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, ViewType

from pipelines.core.paths import Layout
from pipelines.systems.mlflow.paging import every_page
from pipelines.systems.mlflow.store import experiment_id

__all__ = [
    "LoggedModel",
    "begin",
    "close",
    "delete",
    "every_upload",
    "fill",
    "name_version",
    "uploads",
]


def begin(
    layout: Layout, client: MlflowClient, experiment: str, run_id: str, tags: Mapping[str, str]
) -> LoggedModel:
    """Begin an upload of an ONNX model.

    Args:
        layout: The checkout.
        client: Of the store.
        experiment: Its name; made if absent.
        run_id: The training's run.
        tags: Of the upload.

    Returns:
        The upload, with its id and its artifact location.
    """
    return client.create_logged_model(
        experiment_id(layout, client, experiment),
        name=re.sub(r"[^A-Za-z0-9_-]", "-", experiment),
        source_run_id=run_id,
        tags=dict(tags),
        model_type="onnx",
    )


def fill(client: MlflowClient, upload: LoggedModel, folder: Path, run_id: str) -> None:
    """Bring a folder's files to an upload, and name it as what a run has made."""
    client.log_model_artifacts(upload.model_id, str(folder))
    client.log_outputs(run_id, [LoggedModelOutput(upload.model_id, step=0)])


def close(client: MlflowClient, model_id: str, *, ready: bool) -> None:
    """End an upload as READY or FAILED."""
    client.finalize_logged_model(model_id, "READY" if ready else "FAILED")


def name_version(client: MlflowClient, model_id: str, model: str, number: int) -> None:
    """Write onto an upload which version came of it.

    What a server does by itself; MLflow's page follows it from the run to the version.
    """
    entry = json.dumps([{"name": model, "version": str(number)}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": entry})


def uploads(client: MlflowClient, experiment: str, tag: str) -> Iterator[LoggedModel]:
    """Yield the uploads of an experiment that carry a tag; none if there is no such experiment."""
    found = client.get_experiment_by_name(experiment)
    if found is not None:
        yield from (model for model in _of(client, [found.experiment_id]) if tag in model.tags)


def every_upload(client: MlflowClient) -> Iterator[LoggedModel]:
    """Yield the uploads of all experiments, deleted ones too: they may be restored."""
    experiments = every_page(
        lambda token: client.search_experiments(view_type=ViewType.ALL, page_token=token)
    )
    ids = [found.experiment_id for found in experiments]
    if ids:
        yield from _of(client, ids)


def _of(client: MlflowClient, experiments: list[str]) -> Iterator[LoggedModel]:
    return every_page(
        lambda token: client.search_logged_models(experiments, page_token=token, max_results=100)
    )


def delete(client: MlflowClient, model_id: str) -> None:
    """Delete an upload; its files stay."""
    client.delete_logged_model(model_id)

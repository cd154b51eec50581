"""MLflow's registry: registered models and their versions, with aliases and tags.

A call raises what MLflow raises; run it inside `answering`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from pipelines.systems.mlflow.paging import every_page
from pipelines.systems.mlflow.server_leases import PREFIX as LEASE

__all__ = [
    "ModelVersion",
    "RegisteredModel",
    "create_version",
    "delete_alias",
    "delete_version",
    "ensure_model",
    "every_version",
    "find_by_alias",
    "find_model",
    "find_version",
    "location",
    "location_or_none",
    "model_names",
    "set_alias",
    "status",
    "tag_model",
    "tag_version",
    "untag_model",
    "untag_version",
    "versions_of",
]

T = TypeVar("T")
_READY_WITHIN = 60  # seconds
_ABSENT = "RESOURCE_DOES_NOT_EXIST"
_MALFORMED = "INVALID_PARAMETER_VALUE"  # also what a number or alias that cannot exist is called


def _or_none(ask: Callable[[], T], *codes: str) -> T | None:
    """Return what MLflow answers, or None if it answers with one of these error codes."""
    try:
        return ask()
    except MlflowException as error:
        if error.error_code not in codes:
            raise
        return None


def find_model(client: MlflowClient, model: str) -> RegisteredModel | None:
    """Return a registered model, with its aliases and tags; None if there is none."""
    return _or_none(lambda: client.get_registered_model(model), _ABSENT)


def ensure_model(client: MlflowClient, model: str) -> None:
    """Make a registered model unless it is there."""
    _or_none(lambda: client.create_registered_model(model), "RESOURCE_ALREADY_EXISTS")


def model_names(client: MlflowClient) -> list[str]:
    """Return the names of all registered models, sorted; leases are none."""
    found = every_page(lambda token: client.search_registered_models(page_token=token))
    return sorted(model.name for model in found if not model.name.startswith(LEASE))


def tag_model(client: MlflowClient, model: str, key: str, value: str) -> None:
    """Write a tag of a registered model."""
    client.set_registered_model_tag(model, key, value)


def untag_model(client: MlflowClient, model: str, key: str) -> None:
    """Remove a tag of a registered model."""
    client.delete_registered_model_tag(model, key)


def set_alias(client: MlflowClient, model: str, alias: str, number: int) -> None:
    """Let an alias name a version."""
    client.set_registered_model_alias(model, alias, str(number))


def delete_alias(client: MlflowClient, model: str, alias: str) -> None:
    """Take an alias away."""
    client.delete_registered_model_alias(model, alias)


def versions_of(client: MlflowClient, model: str) -> Iterator[ModelVersion]:
    """Yield all versions of a model, in no order; none if there is no such model.

    Their aliases are not filled in: see `find_model`.
    """
    return every_page(
        lambda token: client.search_model_versions(
            f"name = '{model}'", max_results=100, page_token=token
        )
    )


def find_version(client: MlflowClient, model: str, number: int) -> ModelVersion | None:
    """Return one version, or None if it does not exist."""
    return _or_none(lambda: client.get_model_version(model, str(number)), _ABSENT, _MALFORMED)


def find_by_alias(client: MlflowClient, model: str, alias: str) -> ModelVersion | None:
    """Return the version that an alias names, or None if it names none."""
    return _or_none(lambda: client.get_model_version_by_alias(model, alias), _ABSENT, _MALFORMED)


def create_version(
    client: MlflowClient,
    model: str,
    where: str,
    *,
    run_id: str,
    model_id: str,
    tags: Mapping[str, str],
) -> int:
    """Make a version of files that are uploaded, and wait until it is READY or a minute is over.

    Args:
        client: Of the registry.
        model: The registered model's name; it exists.
        where: The artifact location of the files.
        run_id: The training's run.
        model_id: MLflow's id of the upload.
        tags: Of the version.

    Returns:
        The version's number.
    """
    made = client.create_model_version(
        model, where, run_id, dict(tags), await_creation_for=_READY_WITHIN, model_id=model_id
    )
    return int(made.version)


def delete_version(client: MlflowClient, model: str, number: int) -> None:
    """Delete a version; its files stay."""
    client.delete_model_version(model, str(number))


def status(client: MlflowClient, model: str, number: int) -> str:
    """Return how a version stands: READY once it is usable."""
    return str(client.get_model_version(model, str(number)).status)


def tag_version(client: MlflowClient, model: str, number: int, key: str, value: str) -> None:
    """Write a tag of a version."""
    client.set_model_version_tag(model, str(number), key, value)


def untag_version(client: MlflowClient, model: str, number: int, key: str) -> None:
    """Remove a tag of a version."""
    client.delete_model_version_tag(model, str(number), key)


def location(client: MlflowClient, model: str, number: int) -> str:
    """Return the artifact location of a version's files."""
    return str(client.get_model_version_download_uri(model, str(number)))


def location_or_none(client: MlflowClient, model: str, number: str) -> str | None:
    """Return the artifact location of a version's files; None if there is no such version."""
    found = _or_none(
        lambda: client.get_model_version_download_uri(model, number), _ABSENT, _MALFORMED
    )
    return None if found is None else str(found)


def every_version(client: MlflowClient) -> Iterator[ModelVersion]:
    """Yield the versions of all registered models, in no order."""
    return every_page(
        lambda token: client.search_model_versions(max_results=1000, page_token=token)
    )

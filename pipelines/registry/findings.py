"""What the gates found, written onto a version."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipelines.gates.finding import PREFIX, Finding, tags
from pipelines.registry import versions as registry

if TYPE_CHECKING:
    from pipelines.systems.mlflow import MlflowClient


def write(client: MlflowClient, version: registry.Version, findings: Iterable[Finding]) -> None:
    """Write findings onto a version, one tag each; those of gates that no longer exist are removed.

    The gate `champion` also leaves its figures where other metrics are: `metric.gate_error`,
    `metric.champion_error`, `metric.gate_images`.
    """
    from pipelines.systems.mlflow import registered_models

    new = tags(findings)
    metrics = {}
    for finding in findings:
        if finding.gate == "champion":
            names = {"error": "gate_error", "images": "gate_images"}
            figures = finding.figures.items()
            metrics = {registry.METRIC + names.get(key, key): f"{v:.12g}" for key, v in figures}
    for key in sorted(version.tags):
        if key.startswith(PREFIX) and key not in new:
            registered_models.untag_version(client, version.model, version.number, key)
    for key, value in {**metrics, **new}.items():
        registered_models.tag_version(client, version.model, version.number, key, value)

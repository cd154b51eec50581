"""Versions as the registry and its store hold them."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.core.paths import Layout
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.systems import mlflow as tracking

MODEL = "prong-digits"


def stored(layout: Layout, number: int) -> Path:
    """The file of a version as the store holds it."""
    client = tracking.connect(layout)
    where = client.get_model_version_download_uri(MODEL, str(number))
    return Path(where.removeprefix("file://")) / version_files.MODEL_FILE


def forget(layout: Layout) -> None:
    """Drop what was downloaded."""
    shutil.rmtree(layout.state / "cache")


def aliases(layout: Layout) -> dict[str, int]:
    return registry.aliases(tracking.connect(layout), MODEL)

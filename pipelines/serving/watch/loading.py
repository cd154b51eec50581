"""A released version becomes one that can answer: checked, loaded, warmed."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import numpy as np

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.registry.last_seen import Release, cached_drift, cached_file, drift_sha256
from pipelines.serving.http.live import Loaded
from pipelines.serving.http.settings import ServeSettings
from pipelines.systems.onnx.drift_model import DriftModel
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.examples import examples
from pipelines.tasks.named import task_of

_log = logging.getLogger("prong.serve")


class NotHere(UserError):
    """The released file is not in the cache, or is another one: the registry must be asked."""


def load(layout: Layout, release: Release, settings: ServeSettings) -> Loaded:
    """Return a released version, loaded and warmed with the smallest and the largest batch.

    Args:
        layout: The checkout, whose cache holds the file.
        release: Whose signatures were checked.
        settings: Of the server: provider, threads, largest batch.

    Raises:
        NotHere: If the cache does not hold the very file that was released.
        UserError: If it does not run here, or its answers are none.
    """
    statement = release.statement
    path = cached_file(layout, statement.sha256)
    name = f"{statement.model} version {statement.version}"
    try:
        found = sha256_file(path)
    except FileNotFoundError:
        raise NotHere(f"{name}: its file is not in the cache") from None
    if found != statement.sha256:
        raise NotHere(
            f"{name}: the file in the cache was exchanged or damaged: sha256 {found}, released, "
            f"by its statement, {statement.sha256}"
        )
    model = OnnxModel.load(path, settings.provider, asked="--provider", threads=settings.threads)
    if model.sha256 != statement.sha256:  # exchanged between the two looks
        raise NotHere(f"{name}: the file in the cache was exchanged while it was loaded")
    _warm(layout, model, settings.max_batch, name)
    drift = load_drift(layout, release, settings.max_batch)
    return Loaded(statement.version, statement.sha256, model, drift, datetime.now(UTC))


def load_drift(layout: Layout, release: Release, largest: int) -> DriftModel | None:
    """Return the drift graph that was released with a version, warmed.

    A version answers without it too: so one that is not here, or does not run, is left out.

    Args:
        layout: The checkout, whose cache holds the file.
        release: Whose signatures were checked.
        largest: Most examples in one call.

    Returns:
        None if the version has none, or the cache does not hold the very file that was released.
    """
    sha256 = drift_sha256(release.statement)
    path = cached_drift(layout, sha256)
    if not sha256 or not path.is_file() or sha256_file(path) != sha256:
        return None
    try:
        drift = DriftModel.load(path, model=release.statement.sha256)
        for count in (largest, 1):
            drift.scores(examples(drift.form, count), batch=largest)
    except UserError as error:
        _log.warning("drift is not scored", extra={"reason": str(error)})
        return None
    return drift if drift.sha256 == sha256 else None


def _warm(layout: Layout, model: OnnxModel, largest: int, name: str) -> None:
    """Ask it as the server will: first answers take the runtime's memory and choose its kernels."""
    task = task_of(model.form, layout.root)
    for count in (largest, 1, largest, 1):
        raw, answers = model.both(examples(model.form, count), batch=largest)
        if not np.isfinite(raw).all() or not task.sound(answers):
            raise UserError(f"{name}: its answers are none")

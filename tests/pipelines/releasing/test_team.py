"""MLflow on PostgreSQL with an S3 artefact store: the same commands, by settings alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from finished_checkout import FinishedCheckout
from object_store import ObjectStore
from PIL import Image
from postgres import Postgres
from stored_versions import MODEL, forget

from pipelines.data.prepared import load_split
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import gc as garbage
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release import transaction
from pipelines.serving.predict import predict
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import artifacts
from pipelines.systems.onnx.runtime import OnnxModel

Make = Callable[..., FinishedCheckout]


@pytest.mark.slow
def test_a_team_releases_from_postgresql_and_s3(
    checkout: Make,
    postgres: Postgres,
    object_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    made = checkout()
    (made.layout.root / ".dvc").mkdir()
    bucket = object_store.bucket("team")
    settings = {
        **object_store.settings,
        "MLFLOW_TRACKING_URI": postgres.create("team"),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"{bucket}/mlflow",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    done = release.register(made.layout, made.params, None)
    assert promotion.promote(made.layout, made.params, done.version).promoted
    made = checkout(noise=1.0)
    second = release.register(made.layout, made.with_margin(0.9), None)
    assert promotion.promote(made.layout, made.with_margin(0.9), second.version).promoted
    assert promotion.rollback(made.layout, MODEL, None, "").version == 1

    forget(made.layout)
    number, path = version_files.champion_file(made.layout, MODEL)
    assert number == 1
    image = tmp_path / "image.png"
    Image.fromarray(load_split(made.layout.prepared, "test").inputs[0, 0]).save(image)
    (answer,) = predict(OnnxModel.load(path, "cpu"), [image], checkout=made.layout.root)
    assert 0 < answer.probability <= 1
    (row, _) = registry.list_versions(made.layout, MODEL)
    where = version_files.location(made.layout, row)
    assert where.startswith(f"{bucket}/mlflow")

    # What is not needed is deleted from the bucket too.
    made = checkout(noise=2.0)
    third = release.register(made.layout, made.params, None)
    where = version_files.location(
        made.layout, registry.get_version(tracking.connect(made.layout), MODEL, third.version)
    )
    assert artifacts.size(made.layout, where) > 1000
    tracking.connect(made.layout).delete_registered_model_alias(MODEL, "challenger")
    garbage.collect(made.layout, MODEL, keep=0, dry=False, report=print)
    assert artifacts.size(made.layout, where) == 0
    assert transaction.repaired_state(made.layout, MODEL).agrees

"""Registering: what a version holds, and what a broken registration leaves."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_checkout import FinishedCheckout
from key_pairs import share_key
from mlflow.entities.model_registry import ModelVersion
from registries import Registry
from stored_versions import MODEL, forget, stored

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file, write_text
from pipelines.core.paths import Layout
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.systems import mlflow as tracking
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.systems.secrets import USER, secret

Make = Callable[..., FinishedCheckout]


def test_a_version_holds_the_very_bytes_and_all_that_says_where_they_come_from(
    checkout: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = checkout()
    done = release.register(made.layout, made.params, "flow-1")
    assert (done.version, done.created) == (1, True)
    assert stored(made.layout, 1).read_bytes() == made.layout.onnx.read_bytes()
    (row,) = registry.list_versions(made.layout, MODEL)
    assert row.complete
    assert row.aliases == ("challenger",)
    assert row.sha256 == sha256_file(made.layout.onnx) == done.onnx_sha256
    said = row.as_json()
    assert said["metrics"]["parity"] == 1e-6
    assert said["lineage"]["flow_run_id"] == "flow-1"
    assert said["lineage"]["world_size"] == "2"
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    # Nothing is left where the command was typed.
    assert [path.name for path in tmp_path.iterdir()] == ["checkout"]


def test_mlflow_itself_loads_the_version_with_signature_and_example(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    folder = stored(made.layout, 1).parent
    said = (folder / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in said)
    assert {line.partition("==")[0] for line in said} >= {"onnx"}
    assert "external" not in (folder / "MLmodel").read_text().replace("external_data: null", "")
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(folder))
    assert loaded.metadata.signature.inputs.to_dict()[0]["name"] == "images"
    example = loaded.input_example
    answer = loaded.predict(example)
    expected = OnnxModel.load(made.layout.onnx, "cpu").raw(np.asarray(example["images"], np.uint8))
    np.testing.assert_allclose(answer["logits"], expected, rtol=1e-5)


def test_the_run_of_the_training_is_the_versions_run(checkout: Make) -> None:
    made = checkout()
    with tracking.training_run(made.layout, experiment=MODEL, params={}, tags={}) as run:
        run.log({"train_loss": 9.0}, step=1)
        run.tag(tracking.WEIGHTS_TAG, made.weights)
    done = release.register(made.layout, made.params, None)
    assert done.run_id == run.run_id
    client = tracking.connect(made.layout)
    data = client.get_run(run.run_id).data
    assert data.metrics["train_loss"] == 9.0  # its own points, not the tables'
    assert data.metrics["verification/largest_difference"] == 1e-6
    assert data.metrics["evaluation/classes/1/errors"] == 2
    names = {file.path for file in client.list_artifacts(run.run_id, "reports")}
    assert "reports/evaluation.json" in names


def test_without_a_run_one_is_made_from_the_tables(checkout: Make) -> None:
    made = checkout()
    done = release.register(made.layout, made.params, None)
    client = tracking.connect(made.layout)
    run = client.get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == "auto"
    losses = {m.step: m.value for m in client.get_metric_history(done.run_id, "train_loss")}
    assert losses == {1: 2.5, 2: 1.5}
    assert run.data.metrics["validation_error"] == 40.0
    assert run.data.metrics["condition_before/head.1"] == 300.0


def test_equal_bytes_are_registered_once(checkout: Make) -> None:
    made = checkout()
    first = release.register(made.layout, made.params, None)
    assert release.register(made.layout, made.params, None) == replace(first, created=False)
    assert len(registry.list_versions(made.layout, MODEL)) == 1


def test_an_interrupted_registration_is_completed(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    client = tracking.connect(made.layout)
    client.delete_model_version_tag(MODEL, "1", registry.COMPLETE)
    with pytest.raises(UserError, match="not complete"):
        promotion.promote(made.layout, made.params, 1)
    done = release.register(made.layout, made.params, None)
    assert (done.version, done.created) == (1, True)
    assert registry.list_versions(made.layout, MODEL)[0].complete


def test_a_half_uploaded_version_is_replaced(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    client = tracking.connect(made.layout)
    client.delete_model_version_tag(MODEL, "1", registry.COMPLETE)
    stored(made.layout, 1).write_bytes(b"half")
    done = release.register(made.layout, made.params, None)
    rows = registry.list_versions(made.layout, MODEL)
    assert [(row.number, row.complete) for row in rows] == [(done.version, True)]
    assert stored(made.layout, done.version).read_bytes() == made.layout.onnx.read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", None),
        ("evaluation.json", "{"),
        ("verification.json", '{"largest_difference": "small"}'),
    ],
)
def test_a_missing_or_damaged_report_leaves_no_version(
    checkout: Make, name: str, content: str | None
) -> None:
    made = checkout()
    path = made.layout.reports / name
    path.unlink() if content is None else write_text(path, content)
    with pytest.raises(UserError, match=name):
        release.register(made.layout, made.params, None)
    with pytest.raises(UserError, match="no version"):
        registry.list_versions(made.layout, MODEL)


def test_an_unknown_version_is_named_with_those_there_are(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    with pytest.raises(UserError, match=r"version 7: does not exist; there are: 1"):
        promotion.promote(made.layout, made.params, 7)


def test_a_read_only_store_is_a_user_error(checkout: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = checkout()
    database = made.layout.state / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{database}?mode=ro&uri=true")
    with pytest.raises(UserError, match=r"attempt to write a readonly database.*MLFLOW_TRACKING"):
        release.register(made.layout, made.params, None)


@pytest.mark.slow
def test_registrations_at_once_give_distinct_versions(checkout: Make, tmp_path: Path) -> None:
    first = checkout()
    database = first.layout.state / "mlflow.db"
    roots = [first.layout.root]
    for seed in (1, 1):  # two of the three hold the same bytes
        root = tmp_path / f"clone-{len(roots)}"
        shutil.copytree(first.layout.root, root, ignore=shutil.ignore_patterns(".prong"))
        FinishedCheckout.make(Layout(root), 30.0, seed)
        share_key(first.layout, Layout(root))
        roots.append(root)
    models = [root.name for root in roots]
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    shared = Registry(env, dict(zip(models, roots, strict=True)), tmp_path / "output")
    running = [shared.start(model, "release_model") for model in models]
    ended = [process.wait() for process in running]
    assert [one.code for one in ended] == [0, 0, 0], ended
    numbers = [one.said["version"] for one in ended]
    assert set(numbers) == {1, 2}
    assert sorted(one.said["created"] for one in ended) == [False, True, True]
    assert numbers[1] == numbers[2]
    assert all(one.err == "" for one in ended), ended
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM model_versions").fetchone() == (2,)
    connection.close()
    rows = registry.list_versions(first.layout, MODEL)
    assert sum("champion" in row.aliases for row in rows) == 1


def test_a_version_of_someone_else_is_shown_and_left_alone(checkout: Make) -> None:
    made = checkout()
    client = tracking.connect(made.layout)
    client.create_registered_model(MODEL)
    other: ModelVersion = client.create_model_version(MODEL, str(made.layout.root))
    done = release.register(made.layout, made.params, None)
    assert done.version == int(other.version) + 1
    ours, theirs = registry.list_versions(made.layout, MODEL)
    assert (ours.complete, theirs.complete) == (True, False)


@pytest.mark.slow
def test_a_server_does_as_well(
    checkout: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pipelines.cli.ui import pages

    made = checkout()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # so none is started
    monkeypatch.chdir(tmp_path)
    with pages(made.layout, mlflow_port=5600, prefect_port=4200) as (page, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", page.url)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret(made.layout, "mlflow"))
        with tracking.training_run(made.layout, experiment=MODEL, params={}, tags={}) as run:
            run.log({"train_loss": 9.0}, step=1)
            run.tag(tracking.WEIGHTS_TAG, made.weights)
        done = release.register(made.layout, made.params, None)
        assert done.run_id == run.run_id
        assert promotion.promote(made.layout, made.params, 1).promoted
        assert not release.register(made.layout, made.params, None).created
        forget(made.layout)
        number, path = version_files.champion_file(made.layout, MODEL)
        assert number == 1
        assert path.read_bytes() == made.layout.onnx.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkout"]

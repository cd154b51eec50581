from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_checkout import FinishedCheckout, write_model
from mlflow.entities.model_registry import ModelVersion

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file, write_json, write_text
from pipelines.core.paths import Layout
from pipelines.gates.finding import blocked, from_tags
from pipelines.gates.judging import GATES
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.systems import mlflow as tracking
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.systems.onnx.runtime import OnnxModel

MODEL = "prong-digits"
Make = Callable[..., FinishedCheckout]


def stored(layout: Layout, number: int) -> Path:
    """The file of a version as the store holds it."""
    client = tracking.connect(layout)
    where = client.get_model_version_download_uri(MODEL, str(number))
    return Path(where.removeprefix("file://")) / version_files.MODEL_FILE


def forget(layout: Layout) -> None:
    """Drop what was downloaded."""
    shutil.rmtree(layout.state / "cache")


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
    expected = OnnxModel.load(made.layout.onnx, "cpu").logits(
        np.asarray(example["images"], np.uint8)
    )
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


def test_a_registration_that_broke_off_is_mended(checkout: Make) -> None:
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


def test_the_first_version_becomes_champion_and_a_worse_one_does_not(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    first = promotion.promote(made.layout, made.params, 1)
    assert (first.promoted, first.champion, first.held_against) == (True, 1, None)
    assert first.error == pytest.approx(made.gate_errors / first.images)
    again = promotion.promote(made.layout, made.params, 1)
    assert (again.promoted, again.champion, again.reason) == (False, 1, "already champion")

    worse = checkout(noise=100.0)
    assert worse.gate_errors > made.gate_errors
    release.register(made.layout, made.params, None)
    second = promotion.promote(made.layout, made.params, 2)
    assert (second.promoted, second.champion, second.held_against) == (False, 1, 1)
    assert second.error is not None
    assert first.error is not None
    assert second.error > first.error
    row = registry.list_versions(made.layout, MODEL)[0]
    gate = row.as_json()["gates"]["champion"]
    assert gate["verdict"] == "fail"
    assert gate["reason"] in second.reason
    assert float(row.tags["metric.gate_error"]) == pytest.approx(second.error)

    # The same question is not asked twice; a wider margin is another question.
    assert "nothing new" in promotion.promote(made.layout, made.params, 2).reason
    assert promotion.promote(made.layout, loose(made.params), 2).promoted
    assert aliases(made.layout) == {"champion": 2, "previous": 1}


def loose(params: Params) -> Params:
    """Limits that a much worse model meets."""
    gates = replace(params.gates, margin=0.9, class_margin=0.9, robustness=0.9)
    return replace(params, gates=gates)


def aliases(layout: Layout) -> dict[str, int]:
    return registry.aliases(tracking.connect(layout), MODEL)


def test_an_equal_model_takes_the_champions_place(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    promotion.promote(made.layout, made.params, 1)
    equal = checkout(noise=1.0)
    assert equal.gate_errors == made.gate_errors
    release.register(made.layout, made.params, None)
    done = promotion.promote(made.layout, made.params, 2)
    assert (done.promoted, done.champion, done.held_against) == (True, 2, 1)
    assert aliases(made.layout) == {"champion": 2, "previous": 1}


def test_tags_are_there_before_the_alias(checkout: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    made = checkout()
    release.register(made.layout, made.params, None)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", crash)
        with pytest.raises(KeyboardInterrupt):
            promotion.promote(made.layout, made.params, 1)
    (row,) = registry.list_versions(made.layout, MODEL)
    assert blocked(from_tags(row.tags), tuple(GATES)) == []
    assert row.aliases == ("challenger",)
    # What broke off is finished by the next call, before it does anything of its own.
    done = promotion.promote(made.layout, made.params, 1)
    assert (done.champion, done.reason) == (1, "already champion")
    assert aliases(made.layout) == {"champion": 1}


def test_a_champion_put_aside_by_hand_does_not_come_back_by_itself(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    promotion.promote(made.layout, made.params, 1)
    checkout(noise=1.0)
    release.register(made.layout, made.params, None)
    assert promotion.promote(made.layout, made.params, 2).promoted
    tracking.connect(made.layout).set_registered_model_alias(MODEL, "champion", "1")
    done = promotion.promote(made.layout, made.params, 2)
    assert (done.promoted, done.champion) == (False, 1)
    assert "put in its place" in done.reason


@pytest.mark.parametrize("damage", ["exchanged", "gone"])
def test_a_damaged_champion_blocks_and_is_never_loaded(checkout: Make, damage: str) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    promotion.promote(made.layout, made.params, 1)
    checkout(noise=1.0)
    release.register(made.layout, made.params, None)
    forget(made.layout)
    path = stored(made.layout, 1)
    if damage == "gone":
        path.unlink()
    else:
        shutil.copy(made.layout.onnx, path)  # a sound model, but not the one registered
    done = promotion.promote(made.layout, made.params, 2)
    assert (done.promoted, done.champion) == (False, 1)
    assert "registry.model" in done.reason
    assert damage in done.reason
    (row, _) = registry.list_versions(made.layout, MODEL)
    champion = row.as_json()["gates"]["champion"]
    assert (champion["verdict"], champion["figure"]) == ("not run", None)
    with pytest.raises(UserError, match=damage):
        version_files.champion_file(made.layout, MODEL)
    # A gate that did not run is run again once it can.
    write_model_again = checkout()
    shutil.copy(write_model_again.layout.onnx, path)
    assert promotion.promote(made.layout, made.params, 2).promoted


def test_a_champion_of_another_input_blocks(checkout: Make) -> None:
    made = checkout()
    card = OnnxModel.load(made.layout.onnx, "cpu").card
    small = replace(card, size=8)
    weight = np.zeros((8 * 8 + 1, len(card.classes)), np.float32)
    register_foreign(made, weight, small)
    promotion.promote(made.layout, made.params, 1)
    assert aliases(made.layout) == {"challenger": 1}  # it cannot be scored on these images at all
    tracking.connect(made.layout).set_registered_model_alias(MODEL, "champion", "1")
    checkout()
    release.register(made.layout, made.params, None)
    done = promotion.promote(made.layout, made.params, 2)
    assert (done.promoted, done.champion) == (False, 1)
    assert "cannot be scored" in done.reason
    assert "registry.model" in done.reason


def register_foreign(made: FinishedCheckout, weight: np.ndarray, card: OnnxMetadata) -> None:
    """Register a model made for other data than the checkout's, as another checkout would."""
    from safetensors.numpy import load_file, save_file

    prepared = made.layout.prepared
    split = load_file(prepared / "test.safetensors")
    before = {name: (prepared / name).read_bytes() for name in ("test.safetensors", "card.json")}
    images = split["images"][:, :, : card.size, : card.size]
    save_file({**split, "images": np.ascontiguousarray(images)}, prepared / "test.safetensors")
    said = json.loads(before["card.json"])
    write_json(prepared / "card.json", {**said, "size": card.size})
    write_model(made.layout.onnx, weight, card)
    try:
        release.register(made.layout, made.params, None)
    finally:
        for name, content in before.items():
            (prepared / name).write_bytes(content)


def test_an_unknown_version_is_named_with_those_there_are(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    with pytest.raises(UserError, match=r"version 7: does not exist; there are: 1"):
        promotion.promote(made.layout, made.params, 7)


def test_a_read_only_store_is_the_users_to_mend(
    checkout: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = checkout()
    database = made.layout.state / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{database}?mode=ro&uri=true")
    with pytest.raises(UserError, match=r"attempt to write a readonly database.*MLFLOW_TRACKING"):
        release.register(made.layout, made.params, None)


@pytest.mark.slow
def test_registrations_at_once_give_distinct_versions(checkout: Make, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from checkout import PARAMS\nfrom pipelines.release import promote as promotion\n"
        "from pipelines.release import register as release\n"
        "from pipelines.core.paths import Layout\n"
        "layout = Layout(Path(sys.argv[1]))\n"
        "done = release.register(layout, PARAMS, None)\n"
        "promotion.promote(layout, PARAMS, done.version)\n"
        "print(done.version, done.created)\n"
    )
    first = checkout()
    database = first.layout.state / "mlflow.db"
    roots = [first.layout.root]
    for seed in (1, 1):  # two of the three hold the same bytes
        root = tmp_path / f"clone-{len(roots)}"
        shutil.copytree(first.layout.root, root, ignore=shutil.ignore_patterns(".prong"))
        FinishedCheckout.make(Layout(root), 30.0, seed)
        roots.append(root)
    here = Path(__file__).parent
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{database}", "PYTHONPATH": str(here)}
    env.pop("PYTEST_CURRENT_TEST", None)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(root)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for root in roots
    ]
    ends = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ends
    said = [out.split() for out, _ in ends]
    assert sorted({number for number, _ in said}) == ["1", "2"]
    assert sorted(created for _, created in said) == ["False", "True", "True"]
    assert said[1][0] == said[2][0]
    assert all(err == "" for _, err in ends), ends
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
    from pipelines.cli.ui import free_port, pages

    made = checkout()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # so none is started
    monkeypatch.chdir(tmp_path)
    with pages(made.layout, mlflow_port=free_port(5600), prefect_port=4200) as (page, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", page.url)
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

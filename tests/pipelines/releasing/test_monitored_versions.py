"""The monitor on a real registry: what was released is judged, whatever else the log says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from finished_checkout import FinishedCheckout
from numpy.typing import NDArray
from small_checkout import SOURCE, Checkout
from stored_versions import MODEL

from benchmarks import monitor as power
from pipelines import api
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_split
from pipelines.monitoring import held_out
from pipelines.monitoring.held_out import ReleasedVersions, of_card
from pipelines.release import register as release
from pipelines.serving.request_log import LoggedRequest, RequestLog, log_folder, now
from pipelines.systems.onnx.drift_card import DriftCard
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.form import Form

Make = Callable[..., FinishedCheckout]


@pytest.fixture
def project(
    checkout: Make, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> Iterator[api.Project]:
    """A project whose version 1 is live and whose version 2 was never judged."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(SOURCE / name, layout.root / name)
    text = layout.params.read_text()
    layout.params.write_text(text.replace("margin: 0.02 ", "margin: 0.9 ", 1))
    release.register(layout, checkout(noise=0.0).params, None)
    monkeypatch.setattr(api, "_opened", [])
    with patch.dict(os.environ):  # opening it is for a whole process
        opened = api.open_project(layout.root)
        assert opened.promote(1).promoted
        release.register(layout, checkout(noise=1.0).params, None)
        yield opened


def answered(
    layout: Layout, model: OnnxModel, version: int, images: NDArray[Any], **changed: object
) -> None:
    """Log what a version answers to images, as a server would."""
    answers = model.answers(images)
    records = [
        LoggedRequest(
            time=now(),
            request=f"r-{at}",
            model=MODEL,
            version=version,
            sha256=model.sha256,
            examples=1,
            seconds=0.001,
            answers=answers[at : at + 1].tolist(),
            labels=[int(answers[at].argmax())],
        )
        for at in range(len(images))
    ]
    log = RequestLog(log_folder(layout, MODEL))
    log.append([replace(record, **changed) for record in records])  # type: ignore[arg-type]
    log.close()


def noise(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 28, 28)).astype(np.uint8)


def test_a_version_without_a_drift_graph_is_judged_by_its_answers(project: api.Project) -> None:
    layout = project.layout
    model = OnnxModel.load(project.champion().path, "cpu")
    images = np.concatenate([load_split(layout.prepared, name).inputs for name in ("gate", "test")])
    answered(layout, model, 1, images)
    found = project.monitor(minimum=50)
    (of,) = found.versions
    assert (of.version, of.live, of.decision) == (1, True, "no drift")
    assert (of.tested, of.method, of.far) == (len(images), "", None)
    assert "of the gate split; it has no drift graph" in of.reference
    assert project.monitor(minimum=50).versions == ()

    answered(layout, model, 1, noise(100))
    (drifted,) = project.monitor(minimum=50).drift
    assert {test.kind for test in drifted.tests} == {"answers", "labels"}
    assert project.monitor(minimum=50).drift == ()


def test_what_was_never_released_is_refused(project: api.Project) -> None:
    layout = project.layout
    stored = OnnxModel.load(layout.onnx, "cpu")  # version 2: registered, never let through
    answered(layout, stored, 2, noise(60))
    answered(layout, stored, 1, noise(60))  # says that it is version 1
    answered(layout, stored, 9, noise(60))
    found = project.monitor(minimum=50)
    assert (found.read, found.refused, found.versions) == (0, 180, ())


def test_without_its_data_a_version_cannot_be_judged(project: api.Project) -> None:
    layout = project.layout
    model = OnnxModel.load(project.champion().path, "cpu")
    answered(layout, model, 1, noise(60))
    shutil.rmtree(layout.prepared)
    (of,) = project.monitor(minimum=50).versions
    assert of.decision == "no reference"
    assert "are not prepared here" in of.reason


def test_the_champions_data_are_those_of_its_statement(project: api.Project) -> None:
    found = ReleasedVersions(project.layout, MODEL)
    made_from = project.champion().statement.made_from
    assert found.champions_data() == made_from["data_hash"]
    assert found.sha256(2) == ""
    assert held_out.ReleasedVersions(project.layout, "absent").champions_data() == ""


@pytest.mark.slow
def test_the_command_says_by_its_exit_code_what_it_found(project: api.Project) -> None:
    layout, run = project.layout, Checkout(project.layout.root).forked
    model = OnnxModel.load(project.champion().path, "cpu")
    options = ("monitor", "--model", MODEL, "--minimum", "50", "--no-retrain")
    quiet = run(*options)
    assert (quiet.code, "requests    0 new" in quiet.out) == (0, True), quiet.err
    answered(layout, model, 1, noise(100))
    log = next(log_folder(layout, MODEL).glob("*.jsonl"))
    with log.open("ab") as damaged:
        damaged.write(b"\x1b[2J no record\n")
    drift = run(*options)
    assert drift.code == 1, drift.err
    assert "v1 (live) drift: " in drift.out
    assert "1 lines refused" in drift.out
    assert "\x1b" not in drift.out
    again = run(*options, "--since", "1h", "--json")
    assert (again.code, '"decision": "drift"' in again.out) == (1, True), again.err
    for wrong in (("--since", "tomorrow"), ("--rate", "0"), ("--minimum", "1")):
        done = run("monitor", *wrong)
        assert (done.code, "allowed" in done.err) == (2, True), done.err
        assert "Traceback" not in done.err


def test_a_drift_graphs_card_is_taken_as_it_is() -> None:
    form = Form("classification", ("a", "b"), size=8, channels=1, mean=(0.5,), deviation=(0.25,))
    card = DriftCard(
        method="layers",
        form=form,
        data_hash="a" * 64,
        model_sha256="b" * 64,
        auroc={},
        candidates={},
        reference_scores=(1.0, 2.0, 3.0),
        reference_answers=((0.5, 0.5), (0.25, 0.75), (1.0, 0.0)),
        reference_labels=(0, 1, 0),
        threshold=2.9,
    )
    found = of_card(card)
    assert found.examples.scores.tolist() == [1.0, 2.0, 3.0]
    assert found.examples.answers.shape == (3, 2)
    assert found.examples.labels.tolist() == [0, 1, 0]
    assert (found.classes, found.threshold, found.method) == (("a", "b"), 2.9, "layers")
    images = replace(
        card, reference_answers=(), reference_labels=(), form=replace(form, classes=())
    )
    assert of_card(images).examples.answers.shape == (0, 0)


def test_paths_of_the_log_stay_in_the_state_directory(tmp_path: Path) -> None:
    assert log_folder(Layout(tmp_path), MODEL).parent == tmp_path / ".prong/requests"


def test_the_power_of_a_look_is_printed(
    project: api.Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FinishedCheckout.make(project.layout, noise=0.0, seed=0)  # version 1, which learned something
    monkeypatch.chdir(project.layout.root)
    monkeypatch.setitem(power.SHIFTS, "noise 0.2", lambda images: 255 - images)
    assert power.main(["--looks", "3"]) == 0
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if " decision " in line]
    assert [line[:14].strip() for line in rows] == list(power.SHIFTS)
    assert "rate 1 %" in text
    assert [int(word) for word in rows[0].split()[2:]] == [0, 0]  # unchanged
    assert int(rows[2].split()[-1]) == 100  # negatives
    assert text.count(" labels ") == len(power.SHIFTS)

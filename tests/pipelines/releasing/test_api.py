"""The pipeline from Python: the same answers as the commands, typed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as parquet
import pytest
import small_checkout
from finished_checkout import FinishedCheckout
from PIL import Image
from small_checkout import SOURCE
from stored_versions import MODEL

from pipelines import api
from pipelines.core.errors import Failed, UserError
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_split
from pipelines.registry import history
from pipelines.release import register as release
from pipelines.systems import mlflow as tracking

Make = Callable[..., FinishedCheckout]


@pytest.fixture
def project(
    checkout: Make, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> Iterator[api.Project]:
    """A project with two registered versions."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(SOURCE / name, layout.root / name)
    for noise in (0.0, 1.0):
        made = checkout(noise=noise)
        release.register(layout, made.params, None)
    monkeypatch.setattr(api, "_opened", [])
    with patch.dict(os.environ):  # opening it is for a whole process
        yield api.open_project(layout.root / "data")


def wide(project: api.Project) -> None:
    text = project.layout.params.read_text()
    project.layout.params.write_text(text.replace("margin: 0.02 ", "margin: 0.9 ", 1))


def test_promote_predict_look_back_and_forth(project: api.Project, tmp_path: Path) -> None:
    wide(project)
    with pytest.raises(UserError, match="no version is champion"):
        project.champion()
    assert [version.number for version in project.versions()] == [2, 1]
    assert project.promote(1).promoted
    assert project.promote().version == 2  # the challenger
    live = project.champion()
    assert (live.version, live.statement.version, live.warnings) == (2, 2, ())
    digit = load_split(project.layout.prepared, "test").inputs[0, 0]
    image = tmp_path / "digit.png"
    Image.fromarray(digit).save(image)
    (answer,) = project.predict([str(image)], provider="cpu", top=2)
    assert len(answer.top) == 2
    assert answer.label == answer.top[0][0]
    (tmp_path / "in").mkdir()
    image.rename(tmp_path / "in/digit.png")
    scored = project.score(tmp_path / "in", tmp_path / "a.parquet", provider="cpu")
    assert (scored.inputs, scored.quarantined, scored.version) == (1, 0, 2)
    (row,) = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert (row["path"], row["label"], row["version"]) == ("digit.png", answer.label, 2)
    done = project.rollback(reason="odd answers")
    assert (done.version, done.replaced) == (1, 2)
    assert [entry.version for entry in project.history()] == [1, 2, 1]
    found = project.standing()
    assert (found.version, found.reason, found.problems) == (1, "odd answers", ())
    tracking.connect(project.layout).set_registered_model_tag(MODEL, history.tag_key(2), "x")
    with pytest.raises(Failed, match="entry 2 was changed"):
        project.history()


def test_a_process_works_with_one_project(project: api.Project, tmp_path: Path) -> None:
    assert api.open_project(project.layout.root) == project
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match=r"no dvc\.yaml"):
        api.open_project(other)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(SOURCE / name, other / name)
    with pytest.raises(UserError, match="in another process"):
        api.open_project(other)


@pytest.mark.slow
def test_a_run_from_python_is_that_of_the_command(tmp_path: Path) -> None:
    made = small_checkout.make(tmp_path / "job")
    program = (
        "import json\nfrom pipelines.api import open_project\n"
        "said = []\nproject = open_project()\n"
        "done = project.run({'train.epochs': 2, 'train.flip': False}, said=said.append)\n"
        "print(json.dumps([done.version, done.champion, len(done.stages), said]))\n"
    )
    done = made.run(sys.executable, "-c", program, PYTHONPATH=str(made.root))
    assert done.code == 0, done.err
    version, champion, stages, said = json.loads(done.out.splitlines()[-1])
    assert (version, champion, stages) == (1, 1, 5)
    assert any(line.startswith("params.yaml  train.epochs") for line in said)
    assert sum("ran" in line for line in said) == 5
    again = made.prong("run")
    assert again.code == 0, again.err
    assert "0 ran, 5 cached" in again.out

"""What a scoring refuses, and how it goes on after an end, on a full disk and beside another."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as arrow
import pytest
from small_models import CLASSES, classifier, regression, write_images

from pipelines.core.errors import Failed, UserError, disk_error
from pipelines.serving.batch import score as scoring
from pipelines.serving.batch.score import ScoredInputs, quarantine_of, score
from pipelines.serving.batch.score_parts import ScoreParts
from pipelines.systems.locks import take
from pipelines.systems.onnx.runtime import OnnxModel

BATCH = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return OnnxModel.load(classifier(tmp_path_factory.mktemp("model") / "m.onnx"), "cpu")


def run(model: OnnxModel, path: Path, out: Path) -> ScoredInputs:
    return score(model, path, out, name="m", version=7, checkout=out.parent)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _nothing(folder: Path) -> None:
    del folder


def _there(folder: Path) -> None:
    (folder / "a.parquet").write_text("precious")


def _other_folder(folder: Path) -> None:
    (folder / "a.parts").mkdir()
    (folder / "a.parts/precious").touch()


@pytest.mark.parametrize(
    ("path", "out", "before", "message"),
    [
        ("in", "a.parquet", _there, "is there already; --overwrite"),
        ("in", "no/a.parquet", _nothing, "there is no folder"),
        ("in", "a.csv", _nothing, "a name that ends in .parquet"),
        ("in", ".", _nothing, "a name that ends in .parquet"),
        ("in", "in/a.parquet", _nothing, "lies in what is to be scored"),
        ("in", "a.parquet", _other_folder, "holds other files"),
        ("gone", "a.parquet", _nothing, "does not exist"),
        ("in/0000.png", "a.parquet", _nothing, "prong predict"),
        ("t.csv", "a.parquet", _nothing, "a table, but the model takes images"),
        ("/dev/null", "a.parquet", _nothing, "neither a folder nor a file"),
    ],
)
def test_what_cannot_be_done_is_said_before(
    model: OnnxModel,
    tmp_path: Path,
    path: str,
    out: str,
    before: Callable[[Path], None],
    message: str,
) -> None:
    write_images(tmp_path / "in", 1)
    (tmp_path / "t.csv").write_text("age\n1\n")
    before(tmp_path)
    found = left(tmp_path)
    with pytest.raises(UserError, match=message):
        run(model, tmp_path / path, tmp_path / out)
    assert left(tmp_path) == found


def test_a_model_of_rows_takes_no_archive(tmp_path: Path) -> None:
    made = OnnxModel.load(regression(tmp_path / "m.onnx"), "cpu")
    (tmp_path / "in.tar").touch()
    with pytest.raises(UserError, match="the model takes rows"):
        run(made, tmp_path / "in.tar", tmp_path / "a.parquet")


class Stopped(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_PART_BATCHES", 1)
    monkeypatch.setattr(scoring, "_LARGEST_BATCH", BATCH)


def stop_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    add = ScoreParts.add

    def added(self: ScoreParts, batches: Any) -> None:
        add(self, batches)
        if self.done >= BATCH * parts:
            raise Stopped

    monkeypatch.setattr(ScoreParts, "add", added)


def test_a_run_that_was_ended_is_gone_on_with_to_the_same_file(
    model: OnnxModel, tmp_path: Path, small_parts: None
) -> None:
    write_images(tmp_path / "in", 125)
    for at in (3, 31, 32, 90):
        (tmp_path / f"in/{at:04d}.png").write_text("x")
    run(model, tmp_path / "in", tmp_path / "whole.parquet")
    out = tmp_path / "a.parquet"
    for parts in (1, 3):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, parts)
            with pytest.raises(Stopped):
                run(model, tmp_path / "in", out)
        assert not out.exists()
        assert len(list((tmp_path / "a.parts").glob("*.parquet"))) == parts
    done = run(model, tmp_path / "in", out)
    assert (done.resumed, done.inputs, done.quarantined) == (96, 125, 4)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    lists = [quarantine_of(tmp_path / name).read_bytes() for name in ("a.parquet", "whole.parquet")]
    assert lists[0] == lists[1]
    assert not (tmp_path / "a.parts").exists()
    again = run(model, tmp_path / "in", out)  # what is finished is not done again
    assert (again.resumed, again.inputs, again.quarantined) == (125, 125, 4)


@pytest.mark.parametrize("change", ["model", "file", "new file", "damaged", "cut", "renamed"])
def test_nothing_is_kept_that_does_not_belong(
    model: OnnxModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_parts: None,
    change: str,
) -> None:
    pixels = write_images(tmp_path / "in", 125)
    out, used, resumed = tmp_path / "a.parquet", model, 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            run(model, tmp_path / "in", out)
    parts = sorted((tmp_path / "a.parts").glob("*.parquet"))
    match change:
        case "model":
            used = OnnxModel.load(classifier(tmp_path / "other.onnx", seed=5), "cpu")
        case "file":
            pixels[5] = write_images(tmp_path / "other", 1, seed=9)
            os.replace(tmp_path / "other/0000.png", tmp_path / "in/0005.png")
        case "new file":
            pixels = np.concatenate([write_images(tmp_path / "other", 1, seed=9), pixels])
            os.replace(tmp_path / "other/0000.png", tmp_path / "in/000.png")
        case "damaged":
            content = bytearray(parts[1].read_bytes())
            content[len(content) // 3] ^= 0xFF
            parts[1].write_bytes(content)
            resumed = BATCH
        case "cut":
            parts[2].write_bytes(parts[2].read_bytes()[:-100])
            resumed = 2 * BATCH
        case "renamed":
            parts[0].rename(parts[1])
    done = run(used, tmp_path / "in", out)
    assert done.resumed == resumed
    table = pd.read_parquet(out)
    shares = table[[f"p_{c}" for c in CLASSES]].to_numpy()
    np.testing.assert_allclose(shares, used.answers(pixels), rtol=1e-5)


def test_two_at_once_do_not_mix(model: OnnxModel, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    (tmp_path / "a.parts").mkdir()
    with (tmp_path / "a.parts/lock").open("a") as lock:
        assert take(lock)
        with pytest.raises(UserError, match="another process is at work"):
            run(model, tmp_path / "in", tmp_path / "a.parquet")


def test_a_full_disk_is_said_and_the_work_is_kept(
    model: OnnxModel, tmp_path: Path, small_parts: None
) -> None:
    write_images(tmp_path / "in", 600)
    out = tmp_path / "a.parquet"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError) as found:  # noqa: PT011  # what it says is asked below
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, before[1]))
            run(model, tmp_path / "in", out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "file would pass the size limit" in str(disk_error(found.value))
    assert left(tmp_path) == ["a.parts", "in"]
    done = run(model, tmp_path / "in", out)
    assert (done.resumed, done.inputs) == (600, 600)


@pytest.mark.parametrize("wrong", ["one twice", "one absent"])
def test_a_file_without_every_input_once_is_not_kept(
    model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    write_images(tmp_path / "in", 20)
    write = scoring._write_group

    def written(writer: Any, tables: list[Any], group: int) -> None:
        whole = arrow.concat_tables(tables)
        again = [whole.slice(3, 1)] if wrong == "one twice" else []
        write(writer, [whole if again else whole.slice(1), *again], group)

    monkeypatch.setattr(scoring, "_write_group", written)
    with pytest.raises(Failed, match="1 of 20 inputs"):
        run(model, tmp_path / "in", tmp_path / "a.parquet")
    assert not (tmp_path / "a.parquet").exists()

"""Scoring of folders, archives and tables: every input once, whatever its name or content."""

from __future__ import annotations

import csv
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from small_models import CLASSES, classifier, reconstruction, regression, write_images

from pipelines.core.errors import UserError
from pipelines.serving.batch.score import ScoredInputs, quarantine_of, score
from pipelines.systems.onnx.runtime import OnnxModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return OnnxModel.load(classifier(tmp_path_factory.mktemp("model") / "m.onnx"), "cpu")


def run(model: OnnxModel, path: Path, out: Path, **more: bool) -> ScoredInputs:
    return score(model, path, out, name="m", version=7, checkout=out.parent, **more)


def reasons(out: Path) -> dict[str, str]:
    with quarantine_of(out).open(encoding="utf-8", newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def png(folder: Path) -> bytes:
    write_images(folder, 1)
    return (folder / "0000.png").read_bytes()


def test_the_columns_and_that_they_are_the_models_answers(model: OnnxModel, tmp_path: Path) -> None:
    pixels = write_images(tmp_path / "in", 600)
    done = run(model, tmp_path / "in", tmp_path / "a.parquet")
    assert (done.inputs, done.quarantined, done.resumed, done.quarantine) == (600, 0, 0, None)
    assert left(tmp_path) == ["a.parquet", "in"]
    float32, text, whole = arrow.float32(), arrow.string(), arrow.int64()
    schema = parquet.read_schema(tmp_path / "a.parquet")
    assert [(field.name, field.type, field.nullable) for field in schema] == [
        *((name, kind, False) for name, kind in (("number", whole), ("path", text))),
        *(("label", text, False), ("probability", float32, False)),
        *((f"p_{name}", float32, False) for name in CLASSES),
        *(("version", whole, False), ("sha256", text, False)),
    ]
    assert schema.metadata[b"prong.inputs"] == b"600"
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert table["path"].tolist() == [f"{at:04d}.png" for at in range(600)]
    assert table["number"].tolist() == list(range(600))
    answers = model.answers(pixels)
    np.testing.assert_allclose(table[[f"p_{c}" for c in CLASSES]].to_numpy(), answers, rtol=1e-6)
    assert table["label"].tolist() == [CLASSES[at] for at in answers.argmax(axis=1)]
    np.testing.assert_allclose(table["probability"], answers.max(axis=1), rtol=1e-6)
    assert set(table["version"]) == {7}
    assert set(table["sha256"]) == {model.sha256}


def test_what_cannot_be_read_is_listed_and_odd_names_are_kept(
    model: OnnxModel, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    content = png(folder)
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("deep/er/a.png", "no ending", 'line\nbreak, "quoted".png', ".hidden.png"):
        (folder / name).write_bytes(content)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")).write_bytes(content)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/far.png").write_bytes(content)
    os.symlink(tmp_path / "outside", folder / "to outside")
    os.symlink(folder, tmp_path / "outside/back")
    os.symlink(tmp_path, tmp_path / "outside/above")
    os.symlink("..", folder / "deep/up")
    os.symlink("0000.png", folder / "link.png")
    for name, data in {"text.png": b"no image", "cut.png": content[:60], "empty.png": b""}.items():
        (folder / name).write_bytes(data)
    os.symlink("nowhere", folder / "broken.png")
    os.symlink("circle.png", folder / "circle.png")
    os.mkfifo(folder / "fifo.png")

    done = run(model, folder, tmp_path / "a.parquet")
    table = pd.read_parquet(tmp_path / "a.parquet")
    inside = ["0000.png", "deep/er/a.png", "no ending", 'line\nbreak, "quoted".png']
    wanted = {*inside, ".hidden.png", "\\xff\\xfe.png", "link.png", "to outside/far.png"}
    assert sorted(table["path"]) == sorted(wanted)
    assert len({tuple(row) for row in table[[f"p_{c}" for c in CLASSES]].to_numpy()}) == 1
    found = reasons(tmp_path / "a.parquet")
    bad = {"text.png", "cut.png", "empty.png", "broken.png", "circle.png", "fifo.png"}
    assert set(found) == bad
    assert "not a readable image" in found["text.png"]
    assert "empty" in found["empty.png"]
    assert "leads nowhere" in found["broken.png"]
    assert done.inputs == len(table) + len(found)
    numbers = pd.read_csv(quarantine_of(tmp_path / "a.parquet"))["number"]
    assert sorted([*table["number"], *numbers]) == list(range(done.inputs))


def test_an_empty_folder_and_one_without_any_image(model: OnnxModel, tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    assert run(model, tmp_path / "in", tmp_path / "a.parquet").inputs == 0
    assert len(pd.read_parquet(tmp_path / "a.parquet")) == 0
    assert left(tmp_path) == ["a.parquet", "in"]
    for at in range(300):
        (tmp_path / f"in/{at}.txt").write_text("x")
    done = run(model, tmp_path / "in", tmp_path / "a.parquet", overwrite=True)
    assert (done.inputs, done.quarantined) == (300, 300)
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert (len(table), list(table)[:3]) == (0, ["number", "path", "label"])
    assert len(reasons(tmp_path / "a.parquet")) == 300
    # What an earlier file listed is gone with it.
    for path in (tmp_path / "in").glob("*.txt"):
        path.unlink()
    run(model, tmp_path / "in", tmp_path / "a.parquet", overwrite=True)
    assert left(tmp_path) == ["a.parquet", "in"]


def add(tar: tarfile.TarFile, name: str, content: bytes, **more: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in more.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".xz"])
def test_a_tar(model: OnnxModel, tmp_path: Path, packed: str) -> None:
    content = png(tmp_path / "one")
    path = tmp_path / f"in.tar{packed}"
    with tarfile.open(path, f"w:{packed[1:]}") as tar:  # type: ignore[call-overload]
        add(tar, "a.png", content)
        add(tar, "a.png", content)  # a name may be there twice
        add(tar, "folder", b"", type=tarfile.DIRTYPE)
        add(tar, "../out.png", content)
        add(tar, "/etc/out.png", content)
        add(tar, "x" * 300 + ".png", content)
        add(tar, "link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.png", b"", type=tarfile.LNKTYPE, linkname="a.png")
        add(tar, "device", b"", type=tarfile.CHRTYPE)
        add(tar, "line\nbreak.png", content)
        add(tar, "text", b"text")
        add(tar, os.fsdecode(b"\xff.png"), content)
    done = run(model, path, tmp_path / "a.parquet")
    assert (done.inputs, done.quarantined) == (11, 6)
    table = pd.read_parquet(tmp_path / "a.parquet")
    names = ["a.png", "a.png", "x" * 300 + ".png", "line\nbreak.png", "\\xff.png"]
    assert table["path"].tolist() == names
    found = reasons(tmp_path / "a.parquet")
    for name in ("../out.png", "/etc/out.png"):
        assert "leads out" in found[name]
    for name in ("link.png", "hard.png", "device"):
        assert "a link or device" in found[name]
    assert "not a readable image" in found["text"]
    assert left(tmp_path) == ["a.parquet", "a.quarantine.csv", f"in.tar{packed}", "one"]


def test_a_zip(model: OnnxModel, tmp_path: Path) -> None:
    content = png(tmp_path / "one")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("a/b.png", content)
        archive.writestr("a/", b"")
        archive.writestr("../c.png", content)
        archive.writestr("d.png", b"x")
    done = run(model, tmp_path / "in.zip", tmp_path / "a.parquet")
    assert (done.inputs, done.quarantined) == (3, 2)
    assert pd.read_parquet(tmp_path / "a.parquet")["path"].tolist() == ["a/b.png"]


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_a_truncated_tar_gives_no_file(
    model: OnnxModel, tmp_path: Path, packed: str, share: float
) -> None:
    write_images(tmp_path / "one", 400)
    path = tmp_path / f"in.tar{packed}"
    with tarfile.open(path, f"w:{packed[1:]}") as tar:  # type: ignore[call-overload]
        for file in sorted((tmp_path / "one").iterdir()):
            tar.add(file, file.name)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="truncated"):
        run(model, path, tmp_path / "a.parquet")
    assert not (tmp_path / "a.parquet").exists()


@pytest.mark.parametrize("name", ["in.tar", "in.zip", "in.tar.gz"])
def test_what_is_no_archive_is_refused(model: OnnxModel, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 no" if name == "in.zip" else b"no archive at all")
    with pytest.raises(UserError, match=name):
        run(model, tmp_path / name, tmp_path / "a.parquet")
    assert left(tmp_path) == [name]


def test_reconstructions_are_kept_as_errors(tmp_path: Path) -> None:
    pixels = write_images(tmp_path / "in", 20)
    made = OnnxModel.load(reconstruction(tmp_path / "m.onnx"), "cpu")
    run(made, tmp_path / "in", tmp_path / "a.parquet")
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert list(table) == ["number", "path", "error", "version", "sha256"]
    wanted = (((pixels - 100.0) / 255) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(table["error"], wanted, rtol=1e-5)


TABLE = "town,age\nBonn,1\nBonn,2,3\nUlm,x\nKöln,\nKöln,inf\n\nBonn,6\n"


@pytest.mark.parametrize("whole", [True, False])
def test_rows_of_tables(tmp_path: Path, whole: bool) -> None:
    made = OnnxModel.load(regression(tmp_path / "m.onnx"), "cpu")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/t.csv").write_text(TABLE, encoding="utf-8")
    many = pd.DataFrame({"age": np.arange(700.0), "town": ["Bonn"] * 700})
    many.to_parquet(tmp_path / "in/u.parquet")
    (tmp_path / "in/notes.txt").write_text("no table")
    (tmp_path / "in/lacks.csv").write_text("town\nBonn\n")
    out = tmp_path / "a.parquet"
    done = run(made, tmp_path / ("in/t.csv" if whole else "in"), out)
    table = pd.read_parquet(out)
    assert list(table) == ["number", "path", "value_price", "version", "sha256"]
    found = reasons(out)
    assert {"t.csv:3", "t.csv:4", "t.csv:5", "t.csv:6"} <= set(found)
    assert "3 cells, but 2 column names" in found["t.csv:3"]
    assert "age = 'x'" in found["t.csv:4"]
    assert "the answer is not finite" in found["t.csv:5"]
    assert "needed: a finite number" in found["t.csv:6"]
    values = dict(zip(table["path"], table["value_price"], strict=True))
    if whole:
        assert values == {"t.csv:2": 2.0, "t.csv:8": 7.0}
        assert done.inputs == 6
        return
    rows = {f"u.parquet:{at + 1}": at + 1.0 for at in range(700)}
    assert values == {"t.csv:2": 2.0, "t.csv:8": 7.0, **rows}
    assert "lacks column age" in found["lacks.csv:2"]
    assert "no table" in found["notes.txt"]
    assert done.inputs == 6 + 700 + 1 + 1


def test_a_lone_table_without_a_column_is_refused(tmp_path: Path) -> None:
    made = OnnxModel.load(regression(tmp_path / "m.onnx"), "cpu")
    (tmp_path / "t.csv").write_text("town\nBonn\n")
    with pytest.raises(UserError, match="lacks column age"):
        run(made, tmp_path / "t.csv", tmp_path / "a.parquet")
    assert left(tmp_path) == ["m.onnx", "t.csv"]

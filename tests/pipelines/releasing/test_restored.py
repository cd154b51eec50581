"""A backup that was made while others wrote, restored at another place: it answers as before."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from finished_checkout import FinishedCheckout
from released_checkout import MODEL, contents

from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.data.prepared import load_split
from pipelines.evaluation.scoring import error
from pipelines.registry import version_files
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import registered_models
from pipelines.systems.onnx.runtime import OnnxModel

KEPT = ("artifacts", "keys")


def back_up(layout: Layout, to: Path) -> None:
    """Copy what cannot be made again, as docs/provenance.md says."""
    to.mkdir(parents=True)
    source = sqlite3.connect(layout.state / "mlflow.db", timeout=20)
    target = sqlite3.connect(to / "mlflow.db")
    with closing(source), closing(target):
        source.backup(target, pages=16)  # in pieces, so that the writer comes between
    # After the database: what it names is there by then.
    for path in layout.state.iterdir():
        if path.is_dir() and path.name in KEPT:
            shutil.copytree(path, to / path.name)


class Writer(threading.Thread):
    """Writes to the registry until it is told to end."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.ending, self.client = threading.Event(), tracking.connect(layout)
        self.begun, self.count = threading.Event(), 0

    def run(self) -> None:
        while not self.ending.is_set():
            number = self.count = self.count + 1
            registered_models.tag_model(self.client, MODEL, f"note-{number}", "x" * 2000)
            self.begun.set()


def test_registry_artifacts_and_history_come_back_from_a_copy(
    moved: Layout, tmp_path: Path
) -> None:
    number, path = version_files.champion_file(moved, MODEL)
    sha256, test = sha256_file(path), load_split(moved.prepared, "test")
    model = OnnxModel.load(path, "cpu")
    before = error(model, test, model.form, moved.root).errors.tolist()
    stored = contents(moved.state / "artifacts")
    known = tracking.connect(moved).get_registered_model(MODEL)
    writer = Writer(moved)
    writer.start()
    try:
        assert writer.begun.wait(60)
        at_start = writer.count
        back_up(moved, tmp_path / "backup")
        assert wait_until(lambda: writer.count > at_start, 60)
    finally:
        writer.ending.set()
        writer.join()

    shutil.copytree(moved.prepared, tmp_path / "prepared")
    shutil.rmtree(moved.root)  # the disk is lost
    fresh = Layout(tmp_path / "fresh checkout")
    shutil.copytree(tmp_path / "backup", fresh.state)
    with closing(sqlite3.connect(fresh.state / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert contents(fresh.state / "artifacts") == stored
    found, path = version_files.champion_file(fresh, MODEL)
    assert (found, sha256_file(path)) == (number, sha256)
    model = OnnxModel.load(path, "cpu")
    assert error(model, test, model.form, fresh.root).errors.tolist() == before
    again = tracking.connect(fresh).get_registered_model(MODEL)
    assert again.aliases == known.aliases
    assert known.tags.items() <= again.tags.items()  # the history is among them

    # And it goes on: the next release, and the way back to the one before.
    shutil.copytree(tmp_path / "prepared", fresh.prepared)
    made = FinishedCheckout.make(fresh, 2.0, 0)
    assert release.register(fresh, made.params, None).version == 3
    assert promotion.promote(fresh, made.with_margin(0.9), 3).promoted
    assert promotion.rollback(fresh, MODEL, None, "").version == number
    assert version_files.champion_file(fresh, MODEL) == (number, path)

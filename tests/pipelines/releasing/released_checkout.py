"""A checkout with two released versions, made once and copied, and what it holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from finished_checkout import FinishedCheckout

from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import artifacts, locations

MODEL = "prong-digits"
SETTINGS = ("MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT", "MLFLOW_REGISTRY_URI")


def release_two(root: Path, database: Path, digits: Path) -> Layout:
    """Make a checkout whose version 2 is champion, after version 1."""
    layout = Layout(root)
    layout.state.mkdir(parents=True)
    shutil.copy(database, layout.state / "mlflow.db")
    shutil.copytree(digits, layout.prepared)
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTINGS:
            patch.delenv(name, raising=False)
        for noise in (0.0, 1.0):
            made = FinishedCheckout.make(layout, noise, 0)
            done = release.register(layout, made.params, None)
            assert promotion.promote(layout, made.with_margin(0.9), done.version).promoted
    return layout


@pytest.fixture(scope="session")
def put_away(tmp_path_factory: pytest.TempPathFactory, database: Path, digits: Path) -> Path:
    """A released checkout that is no longer where it was made, and has nothing in its cache."""
    folder = tmp_path_factory.mktemp("released")
    made = release_two(folder / "first place", database, digits)
    shutil.rmtree(made.state / "cache")
    made.root.rename(folder / "away")
    return folder / "away"


@pytest.fixture
def moved(put_away: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Layout:
    """A released checkout that was moved; nothing is where it was made."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "ein Ort %41 é").mkdir()
    shutil.copytree(put_away, tmp_path / "ein Ort %41 é/checkout")
    return Layout(tmp_path / "ein Ort %41 é/checkout")


def model_of(layout: Layout, number: int) -> Path:
    """Return the ONNX file of a version in the store of a checkout."""
    where = tracking.connect(layout).get_model_version_download_uri(MODEL, str(number))
    folder = locations.local_path(artifacts.resolved(layout, where))
    assert folder is not None
    return folder / "model.onnx"


def contents(folder: Path) -> dict[str, str]:
    """Return what lies in a folder: path → sha256."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

"""Prepared digits, and settings of a training that takes seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.core import params_file
from pipelines.core.config import TrainConfig
from pipelines.data.prepare import prepare

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 digits."""
    return _prepared(tmp_path_factory.mktemp("training"), 400)


@pytest.fixture(scope="session")
def all_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 5,000 digits, as the main job takes them."""
    return _prepared(tmp_path_factory.mktemp("training"), 0)


def _prepared(folder: Path, limit: int) -> Path:
    data = replace(params_file.load(ROOT / "params.yaml").data, limit=limit)
    prepare(data, root=ROOT, downloads=folder / "downloads", out=folder / "prepared")
    return folder / "prepared"


@pytest.fixture
def train() -> TrainConfig:
    """The shipped settings."""
    return params_file.load(ROOT / "params.yaml").train


@pytest.fixture
def small(train: TrainConfig) -> TrainConfig:
    """Two epochs of a narrow network: 17 steps, a reparametrisation every 5."""
    return replace(train, epochs=2, batch=32, width=4, hidden=16, warmup=2, period=5, samples=200)

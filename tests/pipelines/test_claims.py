"""What the ML Test Score claims of the default model, on all the digits: runs with the long tests.

The bounds leave room for chance: 272 validation and 717 test images, one seed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import inputs, simpler, staleness
from benchmarks.trial import score, trial, unchanged
from pipelines.core import params_file
from pipelines.core.config import TrainConfig
from pipelines.data.prepare import prepare
from pipelines.data.prepared import load_split

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    data = params_file.load(ROOT / "params.yaml").data
    prepare(data, root=ROOT, downloads=folder / "downloads", out=folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def train() -> TrainConfig:
    return replace(params_file.load(ROOT / "params.yaml").train, epochs=3)


def test_every_part_of_the_input_helps(train: TrainConfig, digits: Path) -> None:
    error = {
        name: trial(train, digits, change=change).error
        for name, change in inputs.changes(1).items()
    }
    assert error["no centre"] > error["all of it"] + 0.05
    assert error["all of it"] <= min(error.values()) + 0.01


def test_no_simpler_model_is_as_good(train: TrainConfig, digits: Path) -> None:
    test = load_split(digits, "test")
    network = trial(train, digits, split="test")
    assert simpler.linear(load_split(digits, "train"), test) > network.error + 0.05
    for method in simpler.PLAINER:
        plainer = trial(replace(train, method=method), digits, split="test")
        assert network.error <= plainer.error + 0.006, method


def test_an_older_model_is_worse_and_drift_costs(train: TrainConfig, digits: Path) -> None:
    count = len(load_split(digits, "train").targets)
    share = np.random.default_rng(0).permutation(count) < count // 4
    old = trial(train, digits, split="test", keep=share)
    new = trial(train, digits, split="test")
    assert old.error > new.error + 0.01
    test = load_split(digits, "test")
    error = {name: score(new.network, test, d)[0] for name, d in staleness.DRIFTS.items()}
    assert error["none"] == score(new.network, test, unchanged)[0] == new.error
    assert error["5 pixels to the right"] > error["3 pixels to the right"] > error["none"]


def test_no_neighbour_of_the_default_settings_is_much_better(
    train: TrainConfig, digits: Path
) -> None:
    default = trial(train, digits)
    for knob, value in (("lr", 0.025), ("lr", 0.1), ("damping", 0.03), ("damping", 0.3)):
        other = trial(replace(train, **{knob: value}), digits)
        assert default.error <= other.error + 0.015, f"train.{knob}={value}"

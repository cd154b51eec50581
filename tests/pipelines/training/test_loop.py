"""The training loop: every method, its seed, and what it leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.core.config import Method, TrainConfig
from pipelines.core.errors import UserError
from pipelines.training import methods, network
from pipelines.training.loop import Loop
from pipelines.training.parallel import TrainingRanks


def _loop(settings: TrainConfig, prepared: Path) -> Loop:
    return Loop(settings, prepared, TrainingRanks(0, 1, torch.device("cpu")), None)


@pytest.mark.parametrize("method", methods.LEARNING_RATE)
def test_every_method_trains_with_its_own_default_rate(
    small: TrainConfig, prepared: Path, method: Method
) -> None:
    loop = _loop(replace(small, method=method), prepared)
    assert loop.schedule.lr == methods.LEARNING_RATE[method]
    best = loop.run()
    assert np.isfinite(best["validation_loss"])
    assert loop.step == loop.steps
    assert (loop.refreshes > 1) == method.startswith("prong")


def test_a_training_is_a_function_of_its_seed(small: TrainConfig, prepared: Path) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        loop = _loop(replace(small, seed=seed), prepared)
        loop.run()
        return loop.network.state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_saved_network_is_the_trained_one(
    small: TrainConfig, prepared: Path, tmp_path: Path
) -> None:
    loop = _loop(small, prepared)
    loop.run()
    network.save(tmp_path, loop.spec, loop.network.state_dict())
    spec, loaded = network.load(tmp_path)
    assert spec == loop.spec
    images = loop.inputs[:8]
    with torch.no_grad():
        assert torch.equal(loaded(images), loop.network.eval()(images))


def test_a_damaged_network_is_refused(small: TrainConfig, prepared: Path, tmp_path: Path) -> None:
    loop = _loop(small, prepared)
    network.save(tmp_path, loop.spec, loop.network.state_dict())
    path = tmp_path / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"network\.safetensors"):
        network.load(tmp_path)


def test_a_diverging_training_says_what_to_lower(small: TrainConfig, prepared: Path) -> None:
    loop = _loop(replace(small, method="sgd", lr=1e6, warmup=0, epochs=20), prepared)
    with pytest.raises(UserError, match=r"train\.lr = 1e\+06"):
        loop.run()

"""An interrupted training, resumed, ends with the same bytes as an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import RankProcesses
from torch import nn

from pipelines.core.config import Method, TrainConfig
from pipelines.core.faults import POINTS
from pipelines.core.waiting import wait_until
from pipelines.training import checkpoint, heartbeat
from pipelines.training import resumed_state as state
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.loop import Loop
from pipelines.training.parallel import TrainingRanks

TIMED = {"samples_per_second", "seconds"}


class _Halt(Exception):
    """The test has seen enough."""


def _loop(settings: TrainConfig, prepared: Path, after_step: Any = None) -> Loop:
    ranks = TrainingRanks(0, 1, torch.device("cpu"))
    return Loop(settings, prepared, ranks, None, *([after_step] if after_step else []))


def _through_a_file(loop: Loop, folder: Path) -> Checkpoint:
    saved = loop.state()
    checkpoint.write(
        folder, loop.step, rank=0, ranks=1, barrier=lambda: None, meta=saved.meta,
        shared=saved.shared, numbers=saved.numbers, own=saved.own, keep=1,
    )  # fmt: skip
    found = checkpoint.newest(folder)
    assert found is not None
    return found


def _weights(loop: Loop) -> dict[str, torch.Tensor]:
    return loop.network.state_dict()


def _settings(small: TrainConfig, method: Method, **more: Any) -> TrainConfig:
    return replace(small, method=method, **more)


@pytest.mark.parametrize("method", ["prong+", "prong", "adam", "bn", "sgd"])
@pytest.mark.parametrize("at", [3, 8, 10, 13])
def test_every_method_goes_on_to_the_bit(
    small: TrainConfig, prepared: Path, tmp_path: Path, method: Method, at: int
) -> None:
    """Before, in and behind a window of statistics, and where an epoch ends."""
    settings = _settings(small, method)

    def halt(loop: Loop, phase: str) -> None:
        if loop.step == at and phase == "training":
            raise _Halt

    whole = _loop(settings, prepared)
    whole.run()
    first = _loop(settings, prepared, halt)
    with pytest.raises(_Halt):
        first.run()
    second = _loop(replace(settings), prepared)
    torch.manual_seed(12345)
    second.restore(_through_a_file(first, tmp_path))
    assert second.step == at
    second.run()
    assert second.best == whole.best
    assert second.schedule == whole.schedule
    assert second.refreshes == whole.refreshes
    for name, value in _weights(whole).items():
        assert torch.equal(_weights(second)[name], value), name


def test_an_evaluation_that_was_broken_off_is_made_again(
    small: TrainConfig, prepared: Path, tmp_path: Path
) -> None:
    def halt(loop: Loop, phase: str) -> None:
        if phase == "evaluating":
            raise _Halt

    whole = _loop(small, prepared)
    whole.run()
    first = _loop(small, prepared, halt)
    with pytest.raises(_Halt):
        first.run()
    assert first.unscored
    second = _loop(small, prepared)
    second.restore(_through_a_file(first, tmp_path))
    second.run()
    assert second.best == whole.best
    assert all(torch.equal(_weights(second)[k], v) for k, v in _weights(whole).items())


def test_generators_go_on(tmp_path: Path) -> None:
    device = torch.device("cpu")
    plain, tensors = state.pack_generators(device)
    plain = json.loads(json.dumps(plain))
    tensors = {name: value.clone() for name, value in tensors.items()}

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.normal()), float(torch.randn(()))

    before = drawn()
    assert drawn() != before
    state.unpack_generators(plain, tensors, device)
    assert drawn() == before


@pytest.mark.parametrize("kind", ["sgd", "adamw", "fresh"])
def test_an_optimizer_goes_on(kind: str) -> None:
    def made() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        if kind == "adamw":
            return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.8, 0.9))
        return layer, torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)

    def step(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        layer(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    layer, optimizer = made()
    if kind != "fresh":
        step(layer, optimizer)
    meta, tensors = state.pack_optimizer(optimizer)
    twin, other = made()
    twin.load_state_dict(layer.state_dict())
    state.unpack_optimizer(other, json.loads(json.dumps(meta)), tensors)
    for pair in ((layer, optimizer), (twin, other)):
        step(*pair)
    assert torch.equal(layer.weight, twin.weight)


def _rows(training: RankProcesses) -> list[dict[str, Any]]:
    """Return the events that count, without what the clock says."""
    kept: list[dict[str, Any]] = []
    for line in training.paths.events.read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "resume":
            del kept[event["keep"] :]
        else:
            kept.append(event)
    return [_untimed(event) for event in kept if event["kind"] not in ("start", "end")]


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if k not in TIMED}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


FAULTS = (
    "train.initialised",
    "train.refreshed#2",
    "train.step#7",
    "checkpoint.begun#2",
    "checkpoint.parts#2",
    "checkpoint.written#2",
    "checkpoint.renamed#2",
    "checkpoint.done#2",
    "train.finished",
    "train.saved",
)


@pytest.mark.parametrize("fault", FAULTS)
def test_sigkill_at_every_point(
    small: TrainConfig, prepared: Path, tmp_path: Path, reference: RankProcesses, fault: str
) -> None:
    training = replace(reference, folder=tmp_path / "killed", more={"PRONG_FAULT": fault})
    assert training.run() == [-signal.SIGKILL]
    training.more = {}
    assert training.train() == reference.weights()
    assert _rows(training) == _rows(reference)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> RankProcesses:
    """An uninterrupted training."""
    from pipelines.core import params_file

    train = params_file.load(Path(__file__).parents[3] / "params.yaml").train
    settings = replace(
        train, epochs=2, batch=32, width=4, hidden=16, warmup=2, period=5, samples=200
    )
    folder = tmp_path_factory.mktemp("reference") / "whole"
    training = RankProcesses(prepared, folder, settings, checkpoint=4)
    training.train()
    return training


def _at_step(training: RankProcesses, step: int) -> bool:
    """Say whether the first rank trains and has made so many steps."""
    signs = heartbeat.signs(training.paths.signs)
    return bool(signs) and signs[0].phase == "training" and signs[0].step >= step


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_makes_a_checkpoint_and_an_end(
    small: TrainConfig, prepared: Path, tmp_path: Path, how: signal.Signals
) -> None:
    settings = replace(small, epochs=2000)
    training = RankProcesses(prepared, tmp_path / "long", settings, checkpoint=10**6)
    (process,) = training.start()
    try:
        assert wait_until(lambda: _at_step(training, 6), 60), process.output()
        os.kill(process.pid, how)
        start = time.monotonic()
        assert process.wait(60).code == 128 + how
        assert time.monotonic() - start < 10
    finally:
        process.kill()
    saved = checkpoint.newest(training.paths.checkpoints)
    assert saved is not None
    assert saved.step > 5
    (end,) = heartbeat.ends(training.paths.signs).values()
    assert (end["how"], end["step"]) == ("stopped", saved.step)


def test_every_point_of_a_training_is_tried() -> None:
    tried = {fault.partition("#")[0] for fault in FAULTS}
    assert tried == {p for p in POINTS if p.partition(".")[0] in ("train", "checkpoint")}


def test_a_damaged_checkpoint_costs_steps_and_not_the_result(
    prepared: Path, tmp_path: Path, reference: RankProcesses
) -> None:
    training = replace(reference, folder=tmp_path / "harmed", more={"PRONG_FAULT": "train.step#10"})
    assert training.run() == [-signal.SIGKILL]
    newest = checkpoint.newest(training.paths.checkpoints)
    assert newest is not None
    assert newest.step == 8
    (newest.path / "network.safetensors").write_bytes(b"")
    training.more = {}
    assert training.train() == reference.weights()
    assert "is damaged" in training.output[0]

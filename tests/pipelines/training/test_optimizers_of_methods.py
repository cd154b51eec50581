"""Muon with AdamW as one optimizer: rates reach both, and a saved state continues exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipelines.core.config import Method, TrainConfig
from pipelines.core.errors import UserError
from pipelines.training import methods
from pipelines.training import resumed_state as state


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def _steps(network: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        images = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        network(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("method", ["rmsprop", "adamw", "muon"])
def test_a_saved_state_continues_to_the_same_weights(small: TrainConfig, method: Method) -> None:
    config = replace(small, method=method)
    whole = _network()
    _steps(whole, methods.optimizer(config, whole), range(6))
    first = _network()
    optimizer = methods.optimizer(config, first)
    _steps(first, optimizer, range(3))
    plain, tensors = state.pack_optimizer(optimizer)
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    again = methods.optimizer(config, first)
    state.unpack_optimizer(again, plain, saved)
    _steps(first, again, range(3, 6))
    for one, other in zip(whole.parameters(), first.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_rate_that_is_set_reaches_both_optimizers(small: TrainConfig) -> None:
    network = _network()
    optimizer = methods.optimizer(replace(small, method="muon"), network)
    before = [p.detach().clone() for p in network.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    _steps(network, optimizer, range(2))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    _steps(network, optimizer, range(2))
    assert not any(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_muon_steps_as_far_in_weak_directions_as_in_strong_ones(small: TrainConfig) -> None:
    def spread(method: Method) -> float:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 6, bias=False))
        config = replace(small, method=method, weight_decay=0.0, momentum=0.0)
        before = network[1].weight.detach().clone()
        _steps(network, methods.optimizer(config, network), range(1))
        values = torch.linalg.svdvals(network[1].weight.detach() - before)
        return float(values[4] / values[0])  # the gradient of five examples has rank 5

    assert spread("sgd") < 0.3
    assert spread("muon") > 0.6


def test_a_torch_without_muon_is_named(small: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=r"train\.method = 'muon'.*torch 2\.9"):
        methods.optimizer(replace(small, method="muon"), _network())

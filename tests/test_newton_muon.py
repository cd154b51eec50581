"""Newton-Muon does what its formulas say."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import prong
from benchmarks import peers, workloads
from pipelines.paper.newton_muon import NewtonMuon, msgn


@pytest.mark.parametrize("shape", [(12, 12), (8, 30), (30, 8)])
def test_msgn_is_the_polar_factor_as_far_as_five_iterations_go(shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(0.2, 1, len(right), dtype=torch.float64)
    found = left.T @ msgn(left * values @ right) @ right.T
    # The singular vectors are exact; the values lie where Muon's quintic leaves them.
    assert torch.allclose(found, found.diagonal().diag(), atol=1e-10)
    assert (found.diagonal() - 1).abs().max() < 0.35


def _step_of(layer, optimizer, x, target):
    optimizer.zero_grad()
    (layer(x) - target).square().sum().backward()
    optimizer.step()


def test_a_step_is_the_closed_form():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double()
    x, target = torch.randn(20, 6).double(), torch.randn(20, 4).double()
    optimizer = NewtonMuon([layer], lr=0.1, period=2, weight_decay=0.01)
    moment = torch.eye(6).double() / 1000
    buffer = torch.zeros(4, 6).double()
    inverse = None
    for step in range(5):
        weight = layer.weight.detach().clone()
        _step_of(layer, optimizer, x + step, target)
        if step % 2 == 0:
            rows = x + step
            moment = 0.95 * moment + 0.05 * rows.T @ rows / 20
            ridge = 0.2 * moment.trace() / 6 + 1e-8
            inverse = torch.linalg.inv(moment + ridge * torch.eye(6))
        gradient = layer.weight.grad @ inverse
        buffer = 0.95 * buffer + gradient
        update = 0.2 * math.sqrt(6) * msgn(gradient + 0.95 * buffer)
        expected = weight * (1 - 0.1 * 0.01) - 0.1 * update
        assert torch.allclose(layer.weight, expected, atol=1e-10)


def test_without_a_ridge_the_inverse_is_that_of_the_second_moment():
    """Inputs in other units change it as they change (ZᵀZ)⁻¹."""
    torch.manual_seed(0)
    x, target = torch.randn(50, 5).double(), torch.randn(50, 3).double()
    scale = torch.tensor([1.0, 3.0, 0.1, 20.0, 5.0]).double()
    directions = []
    for factor in (torch.ones(5).double(), scale):
        layer = nn.Linear(5, 3, bias=False).double()
        nn.init.zeros_(layer.weight)
        optimizer = NewtonMuon([layer], ridge=0.0, decay=0.0)
        _step_of(layer, optimizer, x * factor, target)
        directions.append(optimizer.state[layer.weight]["inverse"])
    assert torch.allclose(directions[1], directions[0] / scale / scale[:, None], rtol=1e-4)


def test_evaluation_leaves_no_trace():
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    optimizer = NewtonMuon([layer], period=1)
    layer.eval()
    layer(torch.randn(4, 3))
    layer.train()
    with torch.no_grad():
        layer(torch.randn(4, 3))
    assert not optimizer._seen
    layer(torch.randn(4, 3))
    assert list(optimizer._seen) == [layer.weight]


def test_tokens_of_a_sequence_are_rows():
    layer = nn.Linear(3, 3)
    optimizer = NewtonMuon([layer])
    layer(torch.ones(2, 5, 3))
    total, count = optimizer._seen[layer.weight]
    assert count == 10
    assert torch.equal(total, torch.full((3, 3), 10.0))


def test_a_resumed_run_goes_on_as_if_nothing_had_been():
    torch.manual_seed(0)
    x, target = torch.randn(20, 6), torch.randn(20, 4)
    layer = nn.Linear(6, 4)
    optimizer = NewtonMuon([layer], lr=0.01, period=3)
    for _ in range(4):
        _step_of(layer, optimizer, x, target)
    other = nn.Linear(6, 4)
    other.load_state_dict(layer.state_dict())
    resumed = NewtonMuon([other], lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(4):
        _step_of(layer, optimizer, x, target)
        _step_of(other, resumed, x, target)
        assert torch.equal(layer.weight, other.weight)


def test_every_parameter_has_one_optimizer():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8))
    for build in (peers.muon, peers.newton_muon):
        held = [p for one in build(model, 0.1) for g in one.param_groups for p in g["params"]]
        assert sorted(map(id, held)) == sorted(map(id, model.parameters()))


def test_muon_on_v_steps_in_whitened_coordinates():
    """ΔW = −η s msgn(g_W Uᵀ) U, for a layer without a bias."""
    torch.manual_seed(0)
    # Without labels the gradient has full rank; a softmax's has a direction of rounding only.
    x, labels = torch.sigmoid(torch.randn(256, 5) @ torch.randn(5, 5)), None
    layer = nn.Sequential(nn.Linear(5, 5, bias=False))
    training = peers.begin(peers.METHODS["muon-on-v"], layer, 0.01, [x])
    probe = copy.deepcopy(training.model)
    nn.init.eye_(probe[0].weight)
    u = prong.fold(probe)[0].weight.detach()
    plain = prong.fold(training.model)
    workloads.loss(plain(x), x, labels).backward()
    before, gradient = plain[0].weight.detach(), plain[0].weight.grad
    training.step(x, labels)
    moved = prong.fold(training.model)[0].weight.detach() - before * (1 - 0.01 * 0.01)
    expected = -0.01 * 0.2 * math.sqrt(5) * msgn(gradient @ u.T) @ u
    # torch's Muon multiplies in bfloat16.
    assert (moved - expected).norm() < 0.05 * expected.norm()
    assert (u - torch.eye(5)).norm() > 1

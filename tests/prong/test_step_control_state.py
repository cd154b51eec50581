"""Step control: resumed runs, copies, and other optimizers."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from exact import EXACT, reparametrizer
from small_runs import adam, assert_same_bits, folded
from step_control_runs import (
    BATCH,
    LIMIT,
    MODES,
    allowed,
    batch,
    length,
    loss,
    network,
    start,
    train,
)

import prong


@pytest.mark.parametrize("stop", [3, 10, 13, 20])
@pytest.mark.parametrize("spread", [False, True])
def test_a_resumed_run_is_the_same_to_the_bit(stop, spread):
    options = {"early": True, "period": 20, "leading": 0.3, "spread": spread, "samples": 64}
    options |= {"decomposition_dtype": torch.float32, "dtype": torch.float32}
    seen = batch(99, 64, torch.float32)[0]

    def schedule(optimizer, step):
        # A rate that rises and falls: the highest so far is part of the state.
        optimizer.param_groups[0]["lr"] = 0.1 * min(1, (step + 1) / 5, 10 / (step + 1))

    def steps(model, optimizer, natural, first, last):
        for step in range(first, last):
            schedule(optimizer, step)
            train(model, optimizer, natural, step, step + 1, dtype=torch.float32)

    whole = start("preconditioned", **options)
    whole[2].initialize([seen])
    steps(*whole, 0, stop + 15)
    model, optimizer, natural = start("preconditioned", **options)
    natural.initialize([seen])
    steps(model, optimizer, natural, 0, stop)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), natural.state_dict()))
    assert all(f"{unit.name}.weight_norm" in saved[2]["tensors"] for unit in natural.units)
    resumed = start("preconditioned", **options)
    for each, state in zip(resumed, saved, strict=True):
        each.load_state_dict(state)
    steps(*resumed, stop, stop + 15)
    assert_same_bits(resumed[0].state_dict(), whole[0].state_dict())
    for name, norm in whole[2].control.norms.items():
        assert torch.equal(norm, resumed[2].control.norms[name]), name
        assert torch.equal(whole[2].control.scales[name], resumed[2].control.scales[name])


def test_a_state_without_norms_is_measured_anew():
    model, optimizer, natural = start("preconditioned")
    natural.initialize([batch(99, 64)[0]], "preserve")
    state = natural.state_dict()
    wanted = {name: float(norm) for name, norm in natural.control.norms.items()}
    state["tensors"] = {k: v for k, v in state["tensors"].items() if "weight_norm" not in k}
    natural.load_state_dict(state)
    assert natural.control.norms == {}
    loss(model, *batch(0)).backward()
    optimizer.step()
    found = {name: float(norm) for name, norm in natural.control.norms.items()}
    assert found == pytest.approx(wanted, rel=1e-10)


class OwnSGD(torch.optim.SGD):
    """A subclass may do anything with a gradient, so its step is not taken to be η times it."""


def own_sgd(parameters):
    return OwnSGD(parameters, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("make", [adam, own_sgd])
def test_other_optimizers_get_no_limit(make):
    states = []
    for options in ({}, {"step_limit": None}):
        model = prong.whiten(network(torch.float32))
        optimizer = make(model.parameters())
        natural = reparametrizer(model, optimizer, period=5, samples=32, **options)
        assert natural.control.limit is None
        natural.initialize([batch(99, 64, torch.float32)[0]])
        train(model, optimizer, natural, 0, 12, dtype=torch.float32)
        assert natural.control.scales == {}
        states.append(model.state_dict())
    assert_same_bits(*states)


def test_beside_another_optimizer_sgd_gets_none_either():
    model = prong.whiten(network())
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.Adam([*model[2].parameters(), *model[4].parameters()])
    assert reparametrizer(model, [first, second]).control.limit is None
    other = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], lr=0.1)
    assert reparametrizer(model, [first, other]).control.limit == LIMIT


def test_several_optimizers_each_scale_their_own_layers():
    model = prong.whiten(network())
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], lr=0.2)
    options = {**EXACT, "damping": 0.05, "mode": "preconditioned", "samples": 64}
    natural = reparametrizer(model, [first, second], **options)
    natural.initialize([batch(99, 64)[0]], "preserve")
    (1e3 * loss(model, *batch(0))).backward()
    for optimizer, indices, rate in ((first, (0,), 0.1), (second, (2, 4), 0.2)):
        natural.control(optimizer)
        for index in indices:
            layer = model[index]
            assert length(layer, rate) == pytest.approx(allowed(layer), rel=1e-10)


@pytest.mark.parametrize("rows", [3, BATCH])
def test_a_copy_of_a_model_in_mid_step_remembers_no_pass(rows):
    model, optimizer, natural = start("preconditioned")
    natural.initialize([batch(99, 64)[0]], "preserve")
    loss(model, *batch(0, rows)).backward()
    assert model[0].last_pass._square is not None
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for twin in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
        assert twin[0].last_pass._square is None
        assert twin[0].last_pass is not model[0].last_pass
        assert torch.equal(twin[0].weight, model[0].weight)
    optimizer.step()
    assert model[0].last_pass._square is None


@pytest.mark.parametrize("mode", MODES)
def test_the_whole_reparametrizer_copies_with_its_model(mode):
    """The copy goes on by itself, and both take the same path."""
    model, optimizer, natural = start(mode, leading=0.3)
    natural.initialize([batch(99, 64)[0]], "preserve")
    train(model, optimizer, natural, 0, 3)
    twin, other = copy.deepcopy((model, optimizer))
    options = {**EXACT, "damping": 0.05, "period": 5, "samples": 32, "mode": mode, "leading": 0.3}
    again = reparametrizer(twin, other, **options)
    again.load_state_dict(copy.deepcopy(natural.state_dict()))
    scales = train(model, optimizer, natural, 3, 9)
    assert train(twin, other, again, 3, 9) == scales
    assert (folded(twin) - folded(model)).abs().max() == 0

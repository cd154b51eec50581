"""Step control: the length of the steps of weights and gradients of every kind."""

from __future__ import annotations

import pytest
import torch
from exact import EXACT, reparametrizer
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import networks
from small_runs import WIDE, folded
from step_control_runs import (
    LIMIT,
    MODES,
    allowed,
    batch,
    length,
    loss,
    network,
    outputs_of,
    square_in_v,
    start,
    train,
)
from torch import nn

import prong


@pytest.mark.parametrize("mode", MODES)
def test_a_head_of_zeros_leaves_zero(mode):
    model, optimizer, natural = start(mode)
    with torch.no_grad():
        model[4].weight.zero_()
        model[4].bias.zero_()
    natural.initialize([batch(99, 64)[0]])
    assert not model[4].weight.any()
    (1e3 * loss(model, *batch(0))).backward()
    natural.control(optimizer)
    # Four outputs, 0.1 each; the root is one of float32.
    assert length(model[4], 0.1) == pytest.approx(LIMIT * 0.1 * 4**0.5, rel=1e-7)
    optimizer.step()
    assert model[4].weight.any()
    # Nothing comes back through a head of zeros.
    assert float(natural.control.scales["0"]) == 1


@pytest.mark.parametrize("mode", MODES)
def test_zero_gradients_and_none_pass(mode):
    model, optimizer, natural = start(mode)
    natural.initialize([batch(99, 64)[0]], "preserve")
    optimizer.step()  # no gradient at all
    assert {float(scale) for scale in natural.control.scales.values()} <= {1.0}
    (1e3 * loss(model, *batch(0))).backward()
    model[0].weight.grad, model[0].bias.grad = None, None
    model[2].weight.grad.zero_()
    model[2].bias.grad.zero_()
    optimizer.step()
    scales = {name: float(scale) for name, scale in natural.control.scales.items()}
    assert scales["0"] == scales["2"] == 1
    assert 0 < scales["4"] < 1
    assert torch.isfinite(folded(model)).all()


LAYERS = {
    "no bias": (lambda: nn.Linear(6, 5, bias=False), (7, 6)),
    "one output": (lambda: nn.Linear(6, 1), (7, 6)),
    "wide": (lambda: nn.Linear(6, 20), (7, 6)),
    "tokens": (lambda: nn.Linear(6, 5), (7, 3, 6)),
    "pixels": (lambda: nn.Conv2d(6, 4, 3, padding=1, stride=2), (7, 6, 5, 5)),
    "groups": (lambda: nn.Conv2d(6, 4, 3, groups=2), (7, 6, 5, 5)),
    "groups, no bias": (lambda: nn.Conv1d(6, 9, 2, groups=3, bias=False), (7, 6, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3), (7, 6, 5, 5)),
    "transposed groups": (lambda: nn.ConvTranspose1d(6, 4, 3, groups=2), (7, 6, 5)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LAYERS)
def test_the_bound_of_every_layer_by_hand(name, mode):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model = prong.whiten(nn.Sequential(make().double()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    options = {**EXACT, "damping": 0.05, "mode": mode, "samples": 64}
    natural = reparametrizer(model, optimizer, **options)
    natural.initialize([torch.randn(64, *shape[1:], dtype=WIDE) + 1], "preserve")
    for accumulated in (1, 2):
        optimizer.zero_grad()
        for _ in range(accumulated):
            model(torch.randn(shape, dtype=WIDE)).sub(30).square().mean().backward()
        layer = model[0]
        scale = allowed(layer) / length(layer, 0.2)
        assert scale < 1
        natural.control(optimizer)
        assert float(natural.control.scales["0"]) == pytest.approx(scale, rel=1e-10)
        assert length(layer, 0.2) == pytest.approx(allowed(layer), rel=1e-10)
        # Once more: what is left lies within the bound.
        natural.control(optimizer)
        assert float(natural.control.scales["0"]) == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_below_the_bound_shrinks_by_a_power_of_its_share(name, mode):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model = prong.whiten(nn.Sequential(make().double()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    options = {**EXACT, "damping": 0.05, "mode": mode, "samples": 64}
    natural = reparametrizer(model, optimizer, **options)
    natural.initialize([torch.randn(64, *shape[1:], dtype=WIDE) + 1], "preserve")
    x = torch.randn(shape, dtype=WIDE)
    for factor in (1e-5, 1e-9, 1e-20):
        optimizer.zero_grad()
        (factor * model(x).square().mean()).backward()
        layer = model[0]
        share = length(layer, 0.2) / allowed(layer)
        assert share < 1
        natural.control(optimizer)
        wanted = share**0.3 * allowed(layer)
        assert length(layer, 0.2) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_a_falling_rate_shortens_every_step_in_proportion(mode):
    for factor in (1e-6, 1e3):  # below the bound, and above it
        model, optimizer, natural = start(mode)
        natural.initialize([batch(99, 64)[0]], "preserve")
        lengths = []
        for rate in (0.1, 0.01):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            (factor * loss(model, *batch(0))).backward()
            natural.control(optimizer)
            lengths.append([length(model[index], rate) for index in (0, 2, 4)])
        for before, after in zip(*lengths, strict=True):
            assert after == pytest.approx(before / 10, rel=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_the_norm_of_the_weights_is_that_of_the_last_reparametrisation(mode):
    model, optimizer, natural = start(mode)
    natural.initialize([batch(99, 64)[0]], "preserve")
    held = {name: float(norm) for name, norm in natural.control.norms.items()}
    for name, norm in held.items():
        layer = model[int(name)]
        assert norm == pytest.approx(square_in_v(layer, layer.weight) ** 0.5, rel=1e-10)
    train(model, optimizer, natural, 0, 4)
    assert {name: float(norm) for name, norm in natural.control.norms.items()} == held
    train(model, optimizer, natural, 4, 5)
    for name, norm in natural.control.norms.items():
        layer = model[int(name)]
        assert float(norm) != held[name]
        assert float(norm) == pytest.approx(square_in_v(layer, layer.weight) ** 0.5, rel=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_weight_leaves_the_bias_a_bound(mode):
    model = network()
    model[2].weight.requires_grad_(False)
    model = prong.whiten(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {**EXACT, "damping": 0.05, "mode": mode, "samples": 64}
    natural = reparametrizer(model, optimizer, **options)
    natural.initialize([batch(99, 64)[0]], "preserve")
    weight = model[2].weight.clone()
    (1e3 * loss(model, *batch(0))).backward()
    assert model[2].weight.grad is None
    natural.control(optimizer)
    assert 0.1 * float(model[2].bias.grad.norm()) == pytest.approx(allowed(model[2]), rel=1e-10)
    assert length(model[0], 0.1) == pytest.approx(allowed(model[0]), rel=1e-10)
    optimizer.step()
    assert torch.equal(model[2].weight, weight)


def every_layer_keeps_the_bound(network, power, mode, seed):
    torch.manual_seed(seed)
    model, shape = network
    model = prong.whiten(model.double().train())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options = {**EXACT, "damping": 0.05, "mode": mode, "samples": 16, "period": 2}
    natural = reparametrizer(model, optimizer, **options)
    natural.initialize([torch.randn(16, *shape, dtype=WIDE)])
    for step in range(3):
        optimizer.zero_grad()
        (10**power * model(torch.randn(8, *shape, dtype=WIDE)).sub(1).square().mean()).backward()
        # At step 1 the weights are those that ‖V‖ was taken of; later ones lie close by.
        norms = {name: float(norm) for name, norm in natural.control.norms.items()}
        natural.control(optimizer)
        for unit in natural.units:
            layer = unit.layer
            least = 0.1 * outputs_of(layer) ** 0.5
            bound = LIMIT / (1 + step / 50) ** 0.5 * max(norms[unit.name], least)
            assert length(layer, 0.05) <= bound * (1 + 1e-6)
            if float(natural.control.scales[unit.name]) < 1:
                assert length(layer, 0.05) >= bound * (1 - 1e-6)
        optimizer.step()
        natural.step()


ANY = given(
    networks(), st.floats(-6, 6), st.sampled_from(["fold", "preconditioned"]), st.integers(0, 99)
)


@ANY
@settings(max_examples=10)
def test_every_layer_of_any_network_keeps_the_bound(network, power, mode, seed):
    every_layer_keeps_the_bound(network, power, mode, seed)


@pytest.mark.slow
@ANY
@settings(max_examples=100)
def test_every_layer_of_many_networks_keeps_the_bound(network, power, mode, seed):
    every_layer_keeps_the_bound(network, power, mode, seed)

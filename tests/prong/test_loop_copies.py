"""Copies and checkpoints of a whitened model: they go on to the bit, or are converted."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from plain_loop import MODES, WIDE, advance, data, network, sgd, trained
from torch import nn

import prong


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


@pytest.mark.parametrize("how", ["deepcopy", "save"])
@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("start", [5, 14])
def test_copies_go_on_to_the_bit(how, make, start):
    model = prong.whiten(network())
    optimizer = make(model)
    natural = prong.Reparametrizer(model, optimizer, period=4, samples=100)
    natural.initialize([data()[0]])
    advance(model, optimizer, natural, 0, start)
    if how == "deepcopy":
        twins = copy.deepcopy((model, optimizer, natural))
    else:
        file = io.BytesIO()
        torch.save((model, optimizer, natural), file)
        file.seek(0)
        twins = torch.load(file, weights_only=False)
    assert twins[2].model is twins[0]
    assert twins[2].optimizers == [twins[1]]
    expected = advance(model, optimizer, natural, start, 10)
    found = advance(*twins, start, 10)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert twins[2].steps == natural.steps == start + 10


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_plain_checkpoint_into_a_whitened_model(mode, strict):
    model, optimizer, natural = trained(mode)
    plain = network()
    x, _ = data()
    model.load_state_dict(plain.state_dict(), strict=strict)
    assert (model(x) - plain(x)).abs().max() < 1e-12 * plain(x).abs().max()
    # and the step control measures V anew
    norm = natural.control.norms["0"].clone()
    advance(model, optimizer, natural, 0, 1)
    assert natural.control.norms["0"] != norm


@pytest.mark.parametrize("mode", MODES)
def test_a_whitened_checkpoint_into_a_plain_model(mode):
    model, _, _ = trained(mode)
    plain = network()
    plain[0].bias.data.fill_(7)
    x, _ = data()
    state = model.state_dict()
    plain.load_state_dict(state, strict=False)
    assert (model(x) - plain(x)).abs().max() < 1e-12 * plain(x).abs().max()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*whitened_bias"):
        plain.load_state_dict(state)
    assert (model(x) - plain(x)).abs().max() < 1e-12 * plain(x).abs().max()


@pytest.mark.parametrize("mode", MODES)
def test_a_whitened_checkpoint_into_a_whitened_model_is_bit_identical(mode):
    model, _, _ = trained(mode)
    other = prong.whiten(network())
    other.load_state_dict(model.state_dict())
    for (name, a), (_, b) in zip(
        model.state_dict(keep_vars=True).items(), other.state_dict(keep_vars=True).items(),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(a, b), name


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_of_an_earlier_version_means_v(mode):
    model, _, _ = trained(mode)
    old = {name: value.detach().clone() for name, value in model.state_dict(keep_vars=True).items()}
    assert not any("whitened" in name for name in old)
    other = prong.whiten(network())
    other.load_state_dict(old)
    x, _ = data()
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("mode", MODES)
def test_averages_over_state_dicts_are_averages_of_w_and_b(mode):
    model, optimizer, natural = trained(mode)
    average, exact = None, None
    for step in range(6):
        advance(model, optimizer, natural, step, 1)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        plain = [p.detach().clone() for p in prong.fold(model).parameters()]
        if average is None:
            average, exact = state, plain
        else:
            average = {n: 0.7 * v + 0.3 * state[n] if v.shape == state[n].shape else state[n]
                       for n, v in average.items()}  # fmt: skip
            exact = [0.7 * a + 0.3 * b for a, b in zip(exact, plain, strict=True)]
    model.load_state_dict(average)
    found = list(prong.fold(model).parameters())
    assert all(
        (a - b).abs().max() < 1e-12 * b.abs().max() for a, b in zip(found, exact, strict=True)
    )


@pytest.mark.parametrize("assign", [True, False])
def test_the_meta_device(assign):
    with torch.device("meta"):
        model = prong.whiten(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(WIDE))
    plain = network()
    if not assign:
        model.to_empty(device="cpu")
        assert torch.equal(model[0].whitener[0], torch.eye(6, dtype=WIDE))
        assert not model[0].mean.any()
    model.load_state_dict(plain.state_dict(), assign=assign)
    x, _ = data()
    assert torch.equal(model(x), plain(x))
    # and whitened into meta
    source, _, _ = trained()
    with torch.device("meta"):
        other = prong.whiten(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(WIDE))
    other.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(other(x), source(x))


def test_reset_parameters_draws_what_the_plain_layer_would():
    model, _, _ = trained()
    torch.manual_seed(5)
    model[0].reset_parameters()
    torch.manual_seed(5)
    plain = nn.Linear(6, 8).to(WIDE)
    torch.manual_seed(5)
    plain.reset_parameters()
    x, _ = data()
    assert torch.equal(model[0](x), plain(x))

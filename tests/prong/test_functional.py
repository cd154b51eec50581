"""torch.func over whitened models, and inputs and gradients of another kind than usual."""

from __future__ import annotations

import pytest
import torch
from exact import EXACT, reparametrizer
from plain_loop import MODES, data, loss_of, network, same, sgd, trained
from torch import nn

import prong


@pytest.mark.parametrize("mode", ["fold", "activations"])
def test_gradients_of_single_examples(mode):
    model, _, _ = trained(mode)
    x, y = data(5)
    parameters = dict(model.named_parameters())

    def loss(given, one, target):
        return (torch.func.functional_call(model, given, one[None])[0] - target).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for index in range(5):
        model.zero_grad()
        (model(x[index : index + 1])[0] - y[index]).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert (found[name][index] - parameter.grad).abs().max() < 1e-12


def test_natural_gradients_in_torch_func_are_refused():
    model, _, natural = trained("preconditioned")
    x, y = data(5)

    def loss(given):
        return (torch.func.functional_call(model, given, x) - y).square().sum()

    with pytest.raises(RuntimeError, match=r"natural.convert\('fold'\)"):
        torch.func.grad(loss)(dict(model.named_parameters()))
    natural.convert("fold")
    torch.func.grad(loss)(dict(model.named_parameters()))


@pytest.mark.parametrize("mode", MODES)
def test_functional_call_with_a_state_dict_computes_w_and_b(mode):
    model, _, _ = trained(mode)
    x, _ = data()
    found = torch.func.functional_call(model, model.state_dict(), x)
    assert (found - model(x)).abs().max() < 1e-12 * found.abs().max()


@pytest.mark.parametrize("mode", MODES)
def test_jacobians_of_the_inputs(mode):
    model, _, _ = trained(mode)
    model.requires_grad_(False)
    x, _ = data(1)
    found = torch.func.jacrev(model)(x[0])
    plain = prong.fold(model)
    assert (found - torch.func.jacrev(plain)(x[0])).abs().max() < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_sparse_inputs_count_as_what_they_are(mode):
    ends = []
    for sparse in (False, True):
        model = prong.whiten(network())
        optimizer = sgd(model)
        natural = reparametrizer(model, optimizer, period=2, samples=64, **{**EXACT, "mode": mode})
        for step in range(4):
            x, y = data(seed=step)
            x = x * (x > 1)
            optimizer.zero_grad()
            loss_of(model, x.to_sparse() if sparse else x, y).backward()
            optimizer.step()
        assert natural.report.layers["0"].updated
        ends.append(prong.fold(model))
    same(*ends)


def test_clipping_by_norm_is_by_the_norm_of_the_mode():
    """`clip_grad_norm_` sees g_V in fold mode, and the natural gradient g_V U in preconditioned."""
    norms = {}
    for mode in MODES:
        model, optimizer, _ = trained(mode)
        optimizer.zero_grad()
        loss_of(model, *data(seed=50)).backward()
        norms[mode] = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        if mode == "fold":
            natural = sum(
                (layer.weight.grad @ layer.whitener[0]).square().sum()
                + layer.bias.grad.square().sum()
                for layer in (model[0], model[2])
            ).sqrt()
    assert norms["fold"] == pytest.approx(float(norms["activations"]), rel=1e-9)
    assert norms["preconditioned"] == pytest.approx(float(natural), rel=1e-6)

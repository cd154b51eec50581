"""Over random networks: fold(model)(x) == model(x), no reparametrisation changes the function."""

from __future__ import annotations

import copy

import pytest
import torch
from exact import EXACT, reparametrizer
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import networks

import prong
from prong.options import INITS

OPTIONS = st.fixed_dictionaries(
    {
        "root": st.sampled_from(["auto", "pca", "zca", "cholesky", "newton-schulz"]),
        "kind": st.sampled_from(["full", "full", "full", "diagonal", "centring"]),
        "momentum": st.sampled_from(["reset", "gradient"]),
        "damping": st.sampled_from([1e-3, 1e-2, 1.0]),
        # Never without: an unlimited step may diverge, and then there is no function to keep.
        "step_limit": st.sampled_from([3e-4, 3e-3]),
        "batch_diagonal": st.booleans(),
        "two_sided": st.sampled_from([None, prong.TwoSided(), prong.TwoSided("sampled")]),
        "positions": st.sampled_from([None, 4]),
        "mode": st.sampled_from(["auto", "fold", "activations"]),
        "leading": st.sampled_from([None, 0.3]),
    }
)


def difference(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def condition(model):
    """The largest cond(U)·cond(R) of a model's layers."""
    worst = 1.0
    for module in model.modules():
        if isinstance(module, prong.Whitened):
            number = torch.linalg.cond(module.phi().whitener.double()).max()
            if module.output_whitener is not None:
                number = number * torch.linalg.cond(module.output_whitener.double()).max()
            worst = max(worst, float(number))
    return worst


def train(network, shape, options, init, seed, dtype, optimizer=None):
    """Three reparametrisations; the largest change at one, and fold's difference."""
    torch.manual_seed(seed)
    network = network.to(dtype).train()
    model = prong.whiten(network)
    optimizer = (optimizer or torch.optim.SGD)(
        model.parameters(), **({"lr": 1e-2, "momentum": 0.9} if optimizer is None else {"lr": 1e-3})
    )
    wanted = {**EXACT, "period": 3, "samples": 16, **options}
    natural = reparametrizer(model, optimizer, **wanted)
    mix = torch.randn(shape[0], shape[0], dtype=dtype)

    def batch():
        x = torch.randn(8, *shape, dtype=dtype)
        return torch.einsum("ij,bj...->bi...", mix, x) + 0.5

    natural.initialize([batch(), batch()], init)
    changes = []
    for step in range(9):
        x = batch()
        output = model(x)
        if options["two_sided"] == prong.TwoSided("sampled"):
            natural.sample_fisher(output, "gaussian")
        (output - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 3 == 2:
            model.eval()
            before = model(x).detach()
            natural.step()
            bound = condition(model)
            changes.append(difference(model(x), before) / bound)
            model.train()
        else:
            natural.step()
    model.eval()
    keys = list(copy.deepcopy(prong.fold(model)).state_dict())
    folded = prong.fold(model)
    assert keys == list(folded.state_dict())
    assert not any(isinstance(module, prong.Whitened) for module in folded.modules())
    return max(changes), difference(folded(x), model(x)), condition(model)


def float64_keeps_the_function(network, options, init, seed):
    change, fold, bound = train(*network, options, init, seed, torch.float64)
    assert change * bound <= 1e-10
    assert fold <= 1e-10


def float32_stays_within_its_bound(network, options, seed):
    # V = W U⁻¹ is rounded to float32 and multiplied by U again: the function moves by at most a few
    # units of rounding (2⁻²⁴) times cond(U), over at most three layers here.
    change, fold, bound = train(*network, options, "preserve", seed, torch.float32)
    unit = torch.finfo(torch.float32).eps
    assert change <= 200 * unit
    assert fold <= 200 * unit * bound


def another_optimizer_keeps_the_function(network, seed):
    options = {"two_sided": None, "batch_diagonal": True}
    change, fold, bound = train(
        *network, options, "whitened", seed, torch.float64, torch.optim.AdamW
    )
    assert change * bound <= 1e-10
    assert fold <= 1e-10


IN_FLOAT64 = given(networks(), OPTIONS, st.sampled_from(INITS), st.integers(0, 99))
IN_FLOAT32 = given(networks(), OPTIONS, st.integers(0, 99))
IN_ADAMW = given(networks(), st.integers(0, 99))
FEW, MANY = settings(max_examples=10), settings(max_examples=100)


@IN_FLOAT64
@FEW
def test_fold_and_refresh_keep_the_function_in_float64(network, options, init, seed):
    float64_keeps_the_function(network, options, init, seed)


@IN_FLOAT32
@FEW
def test_float32_stays_within_a_bound_in_the_condition_of_u(network, options, seed):
    float32_stays_within_its_bound(network, options, seed)


@IN_ADAMW
@FEW
def test_other_optimizers_keep_the_function_too(network, seed):
    another_optimizer_keeps_the_function(network, seed)


@pytest.mark.slow
@IN_FLOAT64
@MANY
def test_many_networks_keep_the_function_in_float64(network, options, init, seed):
    float64_keeps_the_function(network, options, init, seed)


@pytest.mark.slow
@IN_FLOAT32
@MANY
def test_many_networks_stay_within_the_bound_of_float32(network, options, seed):
    float32_stays_within_its_bound(network, options, seed)


@pytest.mark.slow
@IN_ADAMW
@MANY
def test_many_networks_keep_the_function_with_another_optimizer(network, seed):
    another_optimizer_keeps_the_function(network, seed)

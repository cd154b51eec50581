"""Optimizer state that is reset or dropped, and optimizers that are refused, by name."""

from __future__ import annotations

import pytest
import torch
from exact import EXACT, reparametrizer
from optimizer_runs import (
    OPTIONS,
    network,
    problem,
)
from torch import nn

import prong
from prong.refresh.state_kinds import REFUSED

FRESH = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop",
         "ASGD", "SGD"]  # fmt: skip


@pytest.mark.parametrize("name", FRESH)
def test_reset_equals_a_fresh_optimizer(name):
    options = {"initial_accumulator_value": 0.3} if name == "Adagrad" else {}
    options |= OPTIONS.get(name, {})
    ends = []
    for anew in (False, True):
        model, (x, y) = network(), problem()
        prong.whiten(model)
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2, **options)
        natural = reparametrizer(
            model, optimizer, period=3, samples=9, momentum="reset", step_limit=None, **EXACT
        )
        for step in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if step == 2 and anew:
                natural.detach()
                optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2, **options)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_reset_is_refused_where_steps_are_counted_for_all_parameters_together():
    schedulefree = pytest.importorskip("schedulefree")
    model = prong.whiten(network())
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="momentum='reset': AdamWScheduleFree counts"):
        reparametrizer(model, optimizer, momentum="reset")


def test_unknown_state_is_dropped_whole_and_said_once():
    class Odd(torch.optim.SGD):
        pass

    model = prong.whiten(network())
    optimizer = Odd(model.parameters(), lr=0.1, momentum=0.9)
    natural = reparametrizer(model, optimizer, samples=64, **EXACT)
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "momentum_buffer": torch.ones_like(parameter), "strange": torch.ones_like(parameter)
        }  # fmt: skip
    with pytest.warns(UserWarning, match="Odd: the state of 0 was dropped, because what 'strange'"):
        natural.initialize([problem()[0]], "preserve")
    assert not any(optimizer.state.get(p) for p in model.parameters())
    natural.initialize([problem()[0]], "preserve")  # and no second warning


def test_a_history_is_dropped():
    model, (x, y) = network(), problem()
    prong.whiten(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    natural = reparametrizer(model, optimizer, period=10, spread=False)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(9)]
    with pytest.warns(UserWarning, match="LBFGS: the history was dropped"):
        losses.append(float(optimizer.step(closure).detach()))
    assert natural.steps == 10
    assert losses[-1] < 0.1 * losses[0]
    assert not optimizer.state


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_over_whitened_layers_is_refused_by_name(name):
    kind = type(name.split(".")[1], (torch.optim.SGD,), {"__module__": name.split(".")[0]})
    model = prong.whiten(network())
    optimizer = kind(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=f"optimizer: {kind.__name__}: "):
        prong.Reparametrizer(model, optimizer)


def test_an_unknown_wrapper_is_refused_and_names_both():
    class Averaging(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = prong.whiten(network())
    optimizer = Averaging(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="Averaging wraps SGD in a way that is not known here"):
        prong.Reparametrizer(model, optimizer)

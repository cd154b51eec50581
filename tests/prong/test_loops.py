"""Loops that people write around a whitened model: exact, or refused, never silently wrong."""

from __future__ import annotations

import pytest
import torch
from exact import EXACT, reparametrizer
from plain_loop import MODES, data, loss_of, network, plain_loop, same, sgd
from torch import nn

import prong

# The order of things


@pytest.mark.parametrize("mode", MODES)
def test_a_closure_is_a_step_like_any_other(mode):
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=4, samples=64, **{**EXACT, "mode": mode})
    natural.initialize([data()[0]])
    for step in range(12):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, *data(seed=step))
            loss.backward()
            return loss

        optimizer.step(closure)
    same(prong.fold(model), plain_loop(mode=mode))


@pytest.mark.parametrize("order", ["never", "before the step", "before the backward pass", "often"])
@pytest.mark.parametrize("mode", MODES)
def test_where_step_is_called_changes_nothing(order, mode):
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=4, samples=64, **{**EXACT, "mode": mode})
    natural.initialize([data()[0]])
    for step in range(12):
        optimizer.zero_grad()
        if order in ("before the backward pass", "often"):
            natural.step()
        loss_of(model, *data(seed=step)).backward()
        if order in ("before the step", "often"):
            natural.step()
        optimizer.step()
        if order == "often":
            natural.step()
            natural.step()
    assert natural.steps == 12
    same(prong.fold(model), plain_loop(mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_a_refresh_between_backward_and_step_carries_the_gradients(mode):
    """Between backward and step, P^{-1} of the gradient: the step is that of the new basis."""
    ends = []
    for early in (True, False):
        model = prong.whiten(network())
        optimizer = sgd(model)
        natural = reparametrizer(
            model,
            optimizer,
            samples=64,
            step_limit=None,
            automatic=False,
            **{**EXACT, "mode": mode},
        )
        natural.initialize([data()[0]])
        x, y = data(seed=3)
        if early:
            loss_of(model, x, y).backward()
        else:
            natural.gathering.plan(0)
            with torch.no_grad():
                natural._refresher.collect(natural.units, [x])
                natural._refresher.gathered(natural.units)
            loss_of(model, x, y).backward()
        if early:
            natural._refresher.collect(natural.units, [x])
            natural._refresher.gathered(natural.units, spent=set())
        optimizer.step()
        ends.append(prong.fold(model))
    same(*ends)


@pytest.mark.parametrize("automatic", [True, False])
def test_micro_batches_are_one_step(automatic):
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=4, samples=64, automatic=automatic, **EXACT)
    natural.initialize([data()[0]])
    for step in range(12):
        x, y = data(seed=step)
        optimizer.zero_grad()
        for half in (slice(0, 32), slice(32, 64)):
            (loss_of(model, x[half], y[half]) / 2).backward()
            natural.step()  # once per micro-batch: only optimizer steps count
        optimizer.step()
        natural.step()
    assert natural.steps == 12
    same(prong.fold(model), plain_loop())


def test_a_step_that_a_scaler_skips_does_not_count():
    model = prong.whiten(network().float())
    optimizer = sgd(model)
    natural = prong.Reparametrizer(model, optimizer, period=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    x, y = (part.float() for part in data())
    for step in range(6):
        optimizer.zero_grad()
        factor = float("inf") if step in (0, 3) else 1.0
        scaler.scale(loss_of(model, x, y) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert natural.steps == 4
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_two_optimizers_are_one():
    """V in one optimizer and d in another: momentum and step control as in a single one."""
    model = prong.whiten(network())
    options = {"lr": 0.05, "momentum": 0.9}
    optimizers = [
        torch.optim.SGD([p for p in model.parameters() if p.dim() == 2], **options),
        torch.optim.SGD([p for p in model.parameters() if p.dim() == 1], **options),
    ]
    natural = reparametrizer(model, optimizers, period=4, samples=64, **EXACT)
    natural.initialize([data()[0]])
    for step in range(12):
        for each in optimizers:
            each.zero_grad()
        loss_of(model, *data(seed=step)).backward()
        for each in reversed(optimizers) if step % 2 else optimizers:
            each.step()
    assert natural.steps == 12
    same(prong.fold(model), plain_loop())


def test_optimizers_that_take_turns_keep_the_function():
    model = prong.whiten(network())
    weights = torch.optim.SGD([p for p in model.parameters() if p.dim() == 2], lr=0.01)
    biases = torch.optim.Adam([p for p in model.parameters() if p.dim() == 1], lr=0.01)
    natural = reparametrizer(model, [weights, biases], period=2, samples=64, **EXACT)
    for step in range(9):
        model.zero_grad()
        loss_of(model, *data(seed=step)).backward()
        (biases if step % 3 == 2 else weights).step()
    assert natural.steps >= 6


def test_an_optimizer_that_was_made_anew_is_refused():
    model = prong.whiten(network())
    natural = prong.Reparametrizer(model, sgd(model))
    anew = sgd(model)
    before = [p.clone() for p in model.parameters()]
    loss_of(model, *data()).backward()
    with pytest.raises(RuntimeError, match="SGD is about to move whitened parameters"):
        anew.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    prong.Reparametrizer(model, anew)  # takes over from the old one
    anew.step()
    assert natural.step() is None
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()  # no business of ours


def test_after_detach_any_optimizer_may_step():
    model = prong.whiten(network())
    natural = prong.Reparametrizer(model, sgd(model))
    natural.detach()
    loss_of(model, *data()).backward()
    sgd(model).step()


@pytest.mark.parametrize("name", ["Lookahead", "SAM"])
def test_state_inside_wrappers_is_found(name):
    module = pytest.importorskip("pytorch_optimizer")
    model = prong.whiten(network())
    if name == "Lookahead":
        optimizer = module.Lookahead(sgd(model), k=3)
    else:
        optimizer = module.SAM(model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
    natural = reparametrizer(model, optimizer, period=3, samples=64, **EXACT)
    x, y = data()
    for _ in range(9):

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            return loss

        closure()
        before = natural.steps
        optimizer.step(closure) if name == "SAM" else optimizer.step()
        assert natural.steps == before + 1
    inner = natural.optimizers[0]
    assert type(inner) is torch.optim.SGD
    if name == "Lookahead":
        slow = optimizer.state[model[0].weight]["slow_params"]
        assert slow is not model[0].weight
        assert (slow - model[0].weight).abs().max() < 1e-12  # step 9 is a multiple of k = 3


# What is counted


def test_the_window_follows_batches_that_become_smaller():
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=20, samples=256, **EXACT)
    natural.initialize([data()[0]])
    seen = []
    for step in range(100):
        optimizer.zero_grad()
        loss_of(model, *data(64 if step < 40 else 2, seed=step)).backward()
        optimizer.step()
        report = natural.step()
        if report is not None:
            seen.append((report.layers["0"].updated, report.layers["0"].examples))
    # 256 examples; then too few, which are refused; then all steps of the period.
    assert seen == [(True, 256), (True, 256), (False, 0), (True, 40), (True, 40)]


def counted(model, natural):
    return [float(unit.layer.moments.count) for unit in natural.units]


def test_passes_that_do_not_train_are_not_counted():
    model = prong.whiten(network())
    natural = reparametrizer(model, sgd(model), samples=640, **EXACT)
    x, y = data()
    with torch.no_grad():
        model(x)  # pseudo labels, a teacher, update_bn
    torch.optim.swa_utils.update_bn([x], model)
    with natural.paused():
        loss_of(model, x, y).backward()  # a pass with gradients that no step uses
    assert counted(model, natural) == [0, 0]
    loss_of(model, x, y).backward()
    assert counted(model, natural) == [64, 64]


def test_a_model_in_eval_mode_is_said():
    model = prong.whiten(network()).eval()
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=2, samples=64, **EXACT)
    loss_of(model, *data()).backward()
    optimizer.step()
    loss_of(model, *data()).backward()
    with pytest.warns(UserWarning, match="0, 2 saw no training pass.*the model is in eval mode"):
        optimizer.step()
    assert natural.report.kept == 2


def test_a_layer_unfrozen_in_mid_window_waits_for_a_whole_one():
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=20, samples=512, **EXACT)
    natural.initialize([data()[0]])
    examples = []
    for step in range(60):
        model[2].weight.requires_grad_(not 20 <= step < 38)
        optimizer.zero_grad()
        loss_of(model, *data(seed=step)).backward()
        optimizer.step()
        report = natural.step()
        if report is not None:
            examples.append((report.layers["2"].updated, report.layers["2"].examples))
    assert examples == [(True, 256), (False, 0), (True, 256)]


@pytest.mark.parametrize("mode", MODES)
def test_a_bias_that_is_frozen_in_mid_training_stays(mode):
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=100, samples=64, **{**EXACT, "mode": mode})
    natural.initialize([data()[0]])

    def step(seed):
        optimizer.zero_grad()
        loss_of(model, *data(seed=seed)).backward()
        optimizer.step()

    for seed in range(3):
        step(seed)
    assert model[0].mean.any()
    model[0].bias.requires_grad_(False)
    kept = prong.fold(model)[0].bias.detach().clone()
    # Held to a plain loop: the same model, made with c = 0 from there on.
    for seed in range(3):
        step(seed)
        now = prong.fold(model)[0].bias
        assert (now - kept).abs().max() <= 1e-14 * kept.abs().max()
    assert not model[0].mean.any()

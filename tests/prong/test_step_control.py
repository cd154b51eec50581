"""Step control: rates, where gradients come from, and ranks."""

from __future__ import annotations

import pytest
import torch
from exact import EXACT, reparametrizer
from processes import run, share
from small_runs import WIDE, assert_close, assert_same_bits, folded
from step_control_runs import (
    BATCH,
    MODES,
    allowed,
    batch,
    length,
    loss,
    network,
    square_in_v,
    start,
    train,
)
from torch import nn

import prong

# Rates


def test_rates_of_their_own_for_weights_and_biases_take_one_path_in_all_modes():
    paths, scales = [], []
    for mode in MODES:
        model, optimizer, natural = start(mode, bias_lr=0.7)
        natural.initialize([batch(99, 64)[0]], "preserve")
        scales.append(train(model, optimizer, natural, 0, 12))
        paths.append(folded(model))
    for path, found in zip(paths[1:], scales[1:], strict=True):
        assert (path - paths[0]).abs().max() < 1e-10
        for one, other in zip(found, scales[0], strict=True):
            assert one == pytest.approx(other, rel=1e-9)
    assert min(min(step.values()) for step in scales[0]) < 1


@pytest.mark.parametrize("mode", MODES)
def test_rates_of_their_own_by_hand(mode):
    model, optimizer, natural = start(mode, bias_lr=0.7)
    natural.initialize([batch(99, 64)[0]], "preserve")
    loss(model, *batch(0)).backward()
    wanted = {}
    for name in ("0", "2", "4"):
        layer = model[int(name)]
        wanted[name] = min(1.0, allowed(layer) / length(layer, 0.1, 0.7))
    before = {p: p.grad.clone() for p in model.parameters()}
    natural.control(optimizer)
    for name, scale in wanted.items():
        assert scale < 1
        assert float(natural.control.scales[name]) == pytest.approx(scale, rel=1e-10)
        for parameter in model[int(name)].parameters():
            assert (parameter.grad - scale * before[parameter]).abs().max() < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_the_bound_falls_with_the_rate_and_not_in_a_warm_up(mode):
    def bound(rate, steps=0):
        """The length that is left of a gradient far too long."""
        optimizer.param_groups[0]["lr"] = rate
        natural.control.steps = steps
        optimizer.zero_grad()
        (1e3 * loss(model, *batch(0))).backward()
        natural.control(optimizer)
        return length(model[2], rate)

    model, optimizer, natural = start(mode)
    natural.initialize([batch(99, 64)[0]], "preserve")
    whole = allowed(model[2])
    for rate in (0.01, 0.05, 0.1):
        assert bound(rate) == pytest.approx(whole, rel=1e-10)
    assert bound(0.05) == pytest.approx(whole / 2, rel=1e-10)
    assert bound(0.01) == pytest.approx(whole / 10, rel=1e-10)
    assert bound(0.1) == pytest.approx(whole, rel=1e-10)
    assert bound(0.1, 150) == pytest.approx(whole / 2, rel=1e-10)
    assert bound(0.05, 150) == pytest.approx(whole / 4, rel=1e-10)


def test_a_rate_of_zero_stops_everything_and_divides_by_nothing():
    model, optimizer, natural = start("preconditioned", lr=0.0)
    before = folded(model)
    train(model, optimizer, natural, 0, 3)
    assert torch.isfinite(folded(model)).all()
    assert (folded(model) - before).abs().max() < 1e-12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [0.0, 1e-9, 1e-3])
def test_what_each_gradient_adds_to_a_step_keeps_the_bound_in_a_warm_up(mode, first):
    """SGD multiplies all that its momentum holds by the rate of the moment."""
    model, optimizer, natural = start(mode, period=1000)
    natural.initialize([batch(99, 64)[0]], "preserve")
    layers = [model[0], model[2], model[4]]
    parts = [(layer, name) for layer in layers for name in ("weight", "bias")]
    before = [torch.zeros_like(getattr(layer, name)) for layer, name in parts]
    for index in range(12):
        optimizer.param_groups[0]["lr"] = first + (0.1 - first) * min(1.0, index / 8)
        old = [getattr(layer, name).detach().clone() for layer, name in parts]
        train(model, optimizer, natural, index, index + 1)
        steps = [was - getattr(*part).detach() for was, part in zip(old, parts, strict=True)]
        added = [step - 0.9 * last for step, last in zip(steps, before, strict=True)]
        for layer, weight, bias in zip(layers, added[::2], added[1::2], strict=True):
            own = (square_in_v(layer, weight) + float(bias.square().sum())) ** 0.5
            assert own <= (1 + 1e-9) * allowed(layer), (index, own / allowed(layer))
            assert own > 0 or not optimizer.param_groups[0]["lr"]
        before = steps


def test_the_momentum_stays_when_a_rate_falls_and_rises_to_where_it_was():
    model, optimizer, natural = start(period=1000)
    train(model, optimizer, natural, 0, 2)
    for rate in (0.05, 0.1):
        held = {p: state["momentum_buffer"].clone() for p, state in optimizer.state.items()}
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss(model, *batch(2)).backward()
        natural.control(optimizer)
        for parameter, momentum in held.items():
            assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum)


def test_a_group_that_is_added_later_is_watched_too():
    model, optimizer, natural = start("preconditioned")
    extra = nn.Parameter(torch.zeros(3, dtype=WIDE))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    extra.grad = torch.full_like(extra, 1e6)
    train(model, optimizer, natural, 0, 1)
    # It belongs to no whitened layer: its gradient passes as it is.
    assert (extra + 0.5e6).abs().max() == 0


# Where gradients come from


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_gives_the_bytes_of_the_plain_loop(mode, keyword):
    plain, closed = start(mode, dtype=torch.float32), start(mode, dtype=torch.float32)
    scales = []
    for each in (plain, closed):
        each[2].initialize([batch(99, 64, torch.float32)[0]])
    wanted = train(*plain, 0, 12, dtype=torch.float32)
    model, optimizer, natural = closed
    for step in range(12):

        def closure(step=step):
            optimizer.zero_grad()
            value = loss(model, *batch(step, dtype=torch.float32))
            value.backward()
            return value

        value = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert torch.is_tensor(value)
        scales.append({name: float(scale) for name, scale in natural.control.scales.items()})
        natural.step()
    assert scales == wanted
    assert min(min(step.values()) for step in scales) < 1
    assert_same_bits(model.state_dict(), plain[0].state_dict())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("leading", [None, 0.3])
def test_micro_batches_equal_the_whole_batch(mode, leading):
    paths, scales = [], []
    for pieces in (1, 4):
        model, optimizer, natural = start(mode, leading=leading)
        natural.initialize([batch(99, 64)[0]], "preserve")
        scales.append(train(model, optimizer, natural, 0, 12, pieces))
        paths.append(folded(model))
    assert (paths[1] - paths[0]).abs().max() < 1e-10
    for one, other in zip(*scales, strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    assert min(min(step.values()) for step in scales[0]) < 1


class Twice(nn.Module):
    """A layer that is called twice, and two layers of one weight."""

    def __init__(self):
        super().__init__()
        self.twice, self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.right.weight = self.left.weight

    def forward(self, x):
        hidden = self.twice(self.twice(x).tanh()).tanh()
        return self.left(hidden) + self.right(hidden * 2 + 1)


@pytest.mark.parametrize("rows", [3, BATCH])
@pytest.mark.parametrize("mode", MODES)
def test_a_weight_with_several_uses_has_one_gradient(mode, rows):
    torch.manual_seed(0)
    model = prong.whiten(Twice().double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {**EXACT, "damping": 0.05, "mode": mode, "samples": 64}
    natural = reparametrizer(model, optimizer, **options)
    natural.initialize([batch(99, 64)[0]], "preserve")
    (100 * loss(model, *batch(0, rows))).backward()
    biases = model.right.bias.grad.square().sum()
    lengths = {
        "twice": length(model.twice, 0.1),
        "left": (length(model.left, 0.1) ** 2 + 0.01 * float(biases)) ** 0.5,
    }
    natural.control(optimizer)
    for name, layer in (("twice", model.twice), ("left", model.left)):
        scale = allowed(layer) / lengths[name]
        assert scale < 1
        assert float(natural.control.scales[name]) == pytest.approx(scale, rel=1e-10)


# Ranks


def _trained(rank, size):
    found = {}
    for name, options in (
        ("fold", {"mode": "fold"}),
        ("preconditioned", {"mode": "preconditioned"}),
        ("leading", {"mode": "preconditioned", "leading": 0.3, "spread": True, "early": True}),
    ):
        model = prong.whiten(network())
        parallel = model
        if size > 1:
            parallel = nn.parallel.DistributedDataParallel(model)
            parallel.register_comm_hook(None, prong.sum_by_parameter)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        options = {**EXACT, "damping": 0.05, "period": 12, "samples": 32, **options}
        natural = reparametrizer(parallel, optimizer, **options)
        natural.initialize([batch(99, 64)[0][share(64, rank, size)]])
        part = share(BATCH, rank, size)
        scales = []
        for step in range(15):
            x, y = batch(step)
            value = nn.functional.cross_entropy(parallel(x[part]), y[part], reduction="sum")
            (value / BATCH).backward()
            optimizer.step()
            optimizer.zero_grad()
            scales.append(torch.stack([natural.control.scales[name] for name in ("0", "2", "4")]))
            natural.step()
        assert natural.report is not None
        found[name] = {
            **model.state_dict(),
            **{f"{k}.norm": v for k, v in natural.control.norms.items()},
            **{f"folded.{k}": v for k, v in prong.fold(model).state_dict().items()},
            "folded.scales": torch.stack(scales),
        }
    return found


def test_two_ranks_are_one_process_and_equal_in_every_bit(tmp_path):
    (alone,) = run(tmp_path / "1", 1, _trained)
    first, second = run(tmp_path / "2", 2, _trained)
    for name, tensors in first.items():
        assert float(tensors["folded.scales"].min()) < 1
        assert_same_bits(second[name], tensors, name)
        comparable = [key for key in tensors if key.startswith("folded.") or key.endswith(".norm")]
        assert_close(tensors, {key: alone[name][key] for key in comparable}, 1e-10, name)

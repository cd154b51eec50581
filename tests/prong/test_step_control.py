"""Step control: the length of every layer's step, whatever the mode or the loss."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from exact import EXACT, reparametrizer
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run, share
from random_networks import networks
from small_runs import WIDE, adam, assert_close, assert_same_bits, dense, folded, train_step
from torch import nn

import prong

MODES = ["fold", "activations", "preconditioned"]
LIMIT, BATCH = 0.003, 16


def network(dtype=WIDE):
    return dense((6, 9, 7, 4), dtype)


def batch(step, size=BATCH, dtype=WIDE):
    generator = torch.Generator().manual_seed(1000 + step)
    mix = torch.randn(6, 6, generator=torch.Generator().manual_seed(7), dtype=WIDE)
    x = torch.randn(size, 6, generator=generator, dtype=WIDE) @ mix + 2.0
    return x.to(dtype), torch.randint(0, 4, (size,), generator=generator)


def loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)


def start(mode="fold", *, lr=0.1, bias_lr=None, dtype=WIDE, **options):
    model = prong.whiten(network(dtype))
    groups = [{"params": list(model.parameters()), "lr": lr}]
    if bias_lr is not None:
        layers = [model[0], model[2], model[4]]
        groups = [
            {"params": [layer.weight for layer in layers], "lr": lr},
            {"params": [layer.bias for layer in layers], "lr": bias_lr},
        ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    options = {**EXACT, "damping": 0.05, "period": 5, "samples": 32, "mode": mode, **options}
    return model, optimizer, reparametrizer(model, optimizer, **options)


def train(model, optimizer, natural, first, last, pieces=1, dtype=WIDE):
    """The scales of every step."""
    scales = []
    for index in range(first, last):
        train_step(model, optimizer, natural, *batch(index, dtype=dtype), pieces)
        scales.append({name: float(scale) for name, scale in natural.control.scales.items()})
    return scales


def rows_of(layer, tensor):
    """A weight, or its gradient, as rows of P's features, `[groups, rows, in]`."""
    groups = getattr(layer, "groups", 1)
    if tensor.dim() == 2:
        return tensor.unsqueeze(0)
    if "Transpose" in type(layer).__name__:
        # [in, out/groups, *taps]
        parts = tensor.reshape(groups, -1, tensor.shape[1], tensor[0, 0].numel())
        return parts.permute(0, 2, 3, 1).flatten(1, 2)
    # [out, in/groups, *taps]
    parts = tensor.reshape(groups, -1, tensor.shape[1], tensor[0, 0].numel())
    return parts.movedim(2, 3).flatten(1, 2)


def square_in_v(layer, tensor):
    """‖V‖² of W, or ‖g_V‖² of the natural gradient; of V or g_V itself where those are held."""
    rows = rows_of(layer, tensor.detach().double())
    if not layer.preconditioned:
        return float(rows.square().sum())
    dense = layer.preconditioner.whole().double()
    return float(((rows @ torch.linalg.inv(dense)) * rows).sum())


def outputs_of(layer):
    return layer.out_channels if hasattr(layer, "out_channels") else layer.out_features


def length(layer, rate, bias_rate=None):
    """η‖(g_V, g_d)‖ by hand."""
    square = 0.0
    if layer.weight.grad is not None:
        square += rate**2 * square_in_v(layer, layer.weight.grad)
    if layer.bias is not None and layer.bias.grad is not None:
        square += (bias_rate or rate) ** 2 * float(layer.bias.grad.double().square().sum())
    return square**0.5


def allowed(layer, limit=LIMIT, steps=0):
    """ρ_t ‖V‖ by hand."""
    least = 0.1 * outputs_of(layer) ** 0.5
    return limit / (1 + steps / 50) ** 0.5 * max(square_in_v(layer, layer.weight) ** 0.5, least)


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


# Weights and gradients of every kind


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


# Around it


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

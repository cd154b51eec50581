"""init="balanced": signals that would fade do not, in every mode and on every rank alike."""

from __future__ import annotations

import pytest
import torch
from exact import EXACT, reparametrizer
from processes import run
from small_runs import assert_close, assert_same_bits, dense
from torch import nn

import prong

MODES = ["fold", "activations", "preconditioned"]
TINY = {**EXACT, "damping": 1e-12, "samples": 400}


def network(scales=(0.01, 1.0, 0.2)):
    """Dense layers whose weights are drawn at these scales, tanh between them."""
    model = dense((6, 9, 7, 4))
    with torch.no_grad():
        for layer, scale in zip((model[0], model[2], model[4]), scales, strict=True):
            layer.weight.mul_(scale)
    return model


def data(number=400):
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return torch.randn(number, 6, generator=generator, dtype=torch.float64) @ mix + 2.0


def start(model, **options):
    model = prong.whiten(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return reparametrizer(model, optimizer, **{**TINY, **options})


def balanced(deviation):
    """√(s/4) where s is below ¼, else s: what the pre-activations' deviation becomes."""
    return max(deviation, (deviation / 4) ** 0.5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [None, 0.3])
def test_pre_activations_take_the_deviation_that_they_should(mode, share):
    plain, x = network().requires_grad_(False), data()
    model = network()
    natural = start(model, mode=mode, leading=share)
    natural.initialize([x])
    folded = prong.fold(model).requires_grad_(False)
    rows, gains = x, []
    for index in (0, 2, 4):
        # The same inputs through the weights as drawn; the layers before are balanced by now.
        drawn = rows @ plain[index].weight.T
        deviation = float(drawn.var(0, correction=0).mean().sqrt())
        found = folded[index](rows)
        after = float(found.var(0, correction=0).mean().sqrt())
        assert after == pytest.approx(balanced(deviation), rel=1e-6)
        gains.append(after / deviation)
        wanted = gains[-1] * plain[index].weight
        assert (folded[index].weight - wanted).abs().max() < 1e-7 * wanted.abs().max()
        # The means are the numbers drawn for b.
        assert (found.mean(0) - plain[index].bias).abs().max() < 1e-7
        rows = found.tanh()
    assert gains[0] > 2
    assert gains[2] > 1
    # ‖V‖ is known without another look.
    held = {name: float(norm) for name, norm in natural.control.norms.items()}
    natural.control.forget()
    natural.control._measure_weights()
    assert held == pytest.approx({k: float(v) for k, v in natural.control.norms.items()}, rel=1e-7)


def test_all_modes_start_with_the_same_function():
    x, outputs = data(), []
    for mode in MODES:
        model = network()
        start(model, mode=mode, damping=0.1).initialize([x])
        outputs.append(model(x).detach())
    assert (outputs[1] - outputs[0]).abs().max() < 1e-10
    assert (outputs[2] - outputs[0]).abs().max() < 1e-10


@pytest.mark.parametrize("mode", MODES)
def test_a_head_that_starts_at_zero_stays_zero(mode):
    model = network((1.0, 1.0, 0.0))
    start(model, mode=mode).initialize([data()])
    assert not model[4].weight.any()
    assert torch.isfinite(model(data())).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_constant_input_changes_nothing(mode):
    model = network()
    x = torch.full((40, 6), 3.0, dtype=torch.float64)
    start(model, mode=mode, damping=0.1).initialize([x])
    assert (prong.fold(model)[0].weight - network()[0].weight).abs().max() < 1e-12
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


LAYERS = {
    "no bias": (lambda: nn.Linear(6, 5, bias=False), (300, 6)),
    "one output": (lambda: nn.Linear(6, 1), (300, 6)),
    "pixels": (lambda: nn.Conv2d(6, 4, 1), (40, 6, 3, 3)),
    "groups": (lambda: nn.Conv2d(6, 4, 1, groups=2), (40, 6, 3, 3)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LAYERS)
def test_other_layers_take_the_deviation_that_they_should(name, mode):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    plain = make().double()
    with torch.no_grad():
        plain.weight.mul_(0.1)
    x = torch.randn(shape, dtype=torch.float64)
    x[:, 3:] *= 3
    model = nn.Sequential(make().double())
    model[0].load_state_dict(plain.state_dict())
    start(model, mode=mode, positions=None).initialize([x])
    before, after = (net(x).detach().movedim(1, -1).flatten(0, -2) for net in (plain, model))
    if plain.bias is None:
        # Without a bias there is no centring: E(W h)² is what counts.
        deviations = [float(y.square().mean().sqrt()) for y in (before, after)]
    else:
        deviations = [float(y.var(0, correction=0).mean().sqrt()) for y in (before, after)]
        assert (after.mean(0) - plain.bias).abs().max() < 1e-7
    assert deviations[1] == pytest.approx(balanced(deviations[0]), rel=1e-6)
    assert deviations[1] > deviations[0]


def _initialized(rank, size):
    found = {}
    for name, options in (
        ("fold", {"mode": "fold", "root": "cholesky"}),
        ("preconditioned", {"mode": "preconditioned"}),
        ("leading", {"mode": "preconditioned", "leading": 0.3}),
        ("other", {"mode": "activations"}),
    ):
        model = network()
        natural = start(model, damping=0.1, **options)
        natural.initialize([data()[rank::size]])
        norms = {f"{k}.norm": v for k, v in natural.control.norms.items()}
        folded = {f"folded.{k}": v for k, v in prong.fold(model).state_dict().items()}
        found[name] = {**model.state_dict(), **norms, **folded}
    return found


def test_ranks_hold_the_same_bits_and_one_answer(tmp_path):
    (alone,) = run(tmp_path / "1", 1, _initialized)
    first, second = run(tmp_path / "2", 2, _initialized)
    for name, tensors in first.items():
        assert_same_bits(second[name], tensors, name)
        comparable = [key for key in tensors if key.startswith("folded.") or key.endswith(".norm")]
        assert_close(tensors, {key: alone[name][key] for key in comparable}, 1e-10, name)

"""Preconditioned layers: P by leading directions, second derivatives, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from exact import EXACT, reparametrizer
from small_runs import assert_same_bits, train_step
from torch import nn

import prong
from prong.linalg.preconditioner import Dense
from prong.refresh.fit import Frame, fit
from prong.refresh.solve_preconditioner import leading

WIDTHS = (90, 70, 60)


def correlated(number, width, seed):
    """Samples whose covariance has a few large eigenvalues and many tiny ones."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(number, 6, generator=generator, dtype=torch.float64)
    mix = torch.randn(6, width, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    noise = torch.randn(number, width, generator=generator, dtype=torch.float64)
    return latent @ mix + 0.01 * noise + 1.0


def covariance(seed=0, width=90):
    return torch.cov(correlated(400, width, seed).T).unsqueeze(0)


def test_leading_directions_define_p():
    sigma, epsilon = covariance(), torch.tensor([0.05], dtype=torch.float64)
    found = leading(sigma, epsilon, 0.1, None)
    assert found is not None
    assert found.directions.shape[2] == 6
    values, vectors = torch.linalg.eigh(sigma[0])
    of_six = (vectors[:, -6:] * values[-6:]) @ vectors[:, -6:].T
    wanted = torch.linalg.inv(of_six + 0.05 * torch.eye(90, dtype=torch.float64))
    assert (found.whole()[0] - wanted).abs().max() < 1e-8
    rows = torch.randn(1, 4, 90, dtype=torch.float64)
    back = found.divided(found.times(rows))
    assert (back - rows).abs().max() < 1e-9


def test_a_warm_start_follows_a_covariance_that_moved_a_little():
    epsilon = torch.tensor([0.05], dtype=torch.float64)
    start = leading(covariance(0), epsilon, 0.1, None)
    warm = leading(covariance(1), epsilon, 0.1, start.directions)
    cold = leading(covariance(1), epsilon, 0.1, None)
    difference = warm.whole() - cold.whole()
    assert difference.abs().max() * 0.05 < 1e-3


def test_a_flat_spectrum_needs_the_whole_p():
    flat = torch.eye(90, dtype=torch.float64).unsqueeze(0)
    assert leading(flat, torch.tensor([0.1], dtype=torch.float64), 0.1, None) is None


@pytest.mark.parametrize("shifted", [False, True])
def test_condition_and_error_are_those_of_the_decomposition(shifted):
    identity = torch.eye(90, dtype=torch.float64)
    sigma = covariance() + 0.05 * identity
    shift = torch.linspace(-1, 1, 90, dtype=torch.float64).unsqueeze(0) if shifted else None
    precision = torch.linalg.inv(covariance(3) + 0.05 * identity)
    condition, error = fit(Dense(precision), Frame(sigma), shift)
    if shift is not None:
        sigma = sigma + shift.T @ shift
    values = torch.linalg.eigvals(precision[0] @ sigma[0]).real
    assert float(condition) == pytest.approx(float(values.max() / values.min()), rel=0.05)
    exact = float((values - 1).square().mean().sqrt())
    assert float(error) == pytest.approx(exact, rel=0.6)


def start(limit=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(*WIDTHS[:2]), nn.Tanh(), nn.Linear(*WIDTHS[1:])).double()
    model = prong.whiten(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    wanted = {"mode": "preconditioned", "damping": 0.05, "period": 4, "step_limit": limit}
    natural = reparametrizer(model, optimizer, **{**EXACT, **wanted, **options})
    return model, optimizer, natural


def advance(model, optimizer, natural, first, last, batch=16):
    for index in range(first, last):
        x = correlated(batch, WIDTHS[0], 100 + index)
        target = correlated(batch, WIDTHS[-1], 500 + index)
        train_step(model, optimizer, natural, x, target, loss=nn.functional.mse_loss)


@pytest.mark.parametrize("batch", [16, 80])
@pytest.mark.parametrize("limit", [None, 1e-5])
def test_leading_directions_take_the_path_of_their_p(batch, limit):
    model, optimizer, natural = start(limit, leading=0.1)
    advance(model, optimizer, natural, 0, 4, batch)
    assert model[0].precision_damping is not None
    assert model[0].precision_matrix.shape[2] < 30
    twin, other, dense = start(limit)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    dense.load_state_dict(copy.deepcopy(natural.state_dict()))
    for layer in (twin[0], twin[2]):
        layer.put_preconditioner(Dense(layer.preconditioner.whole()))
    dense.control.forget()  # ‖V‖, too, is found from either form of P
    advance(model, optimizer, natural, 4, 7, batch)
    advance(twin, other, dense, 4, 7, batch)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-10
    if limit is not None:
        for name in ("0", "2"):
            scale, same = (float(each.control.scales[name]) for each in (natural, dense))
            assert scale == pytest.approx(same, rel=1e-8)
            assert scale < 1


def test_a_resumed_run_with_leading_directions_is_the_same_to_the_bit():
    whole = start(1e-4, leading=0.1, spread=True)
    advance(*whole, 0, 13)
    model, optimizer, natural = start(1e-4, leading=0.1, spread=True)
    advance(model, optimizer, natural, 0, 6)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), natural.state_dict()))
    model, optimizer, natural = start(1e-4, leading=0.1, spread=True)
    for each, state in zip((model, optimizer, natural), saved, strict=True):
        each.load_state_dict(state)
    advance(model, optimizer, natural, 6, 13)
    assert_same_bits(model.state_dict(), whole[0].state_dict())


@pytest.mark.parametrize("batch", [16, 80])
def test_a_gradient_penalty_takes_the_path_of_the_folded_layers(batch):
    results = []
    for mode in ("fold", "preconditioned"):
        model, _, natural = start()
        natural.convert("fold")
        x = correlated(batch, WIDTHS[0], 3)
        natural.initialize([x], "preserve")
        natural.convert(mode)
        x.requires_grad_()
        loss = model(x).square().sum(1).mean()
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + slope.square().sum()).backward()
        natural.detach()
        torch.optim.SGD(model.parameters(), lr=1e-3).step()
        results.append([p.detach() for p in prong.fold(model).parameters()])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-9 * b.abs().max()


@pytest.mark.parametrize(
    "options", [{"mode": "fold"}, {"mode": "activations"}, {"kind": "diagonal"}]
)
def test_leading_directions_have_no_effect_where_they_are_not_used(options):
    states = []
    for share in (None, 0.1):
        model, optimizer, natural = start(1e-3, leading=share, **options)
        natural.initialize([correlated(300, WIDTHS[0], 3)])
        advance(model, optimizer, natural, 0, 9)
        assert natural.report.layers["0"].updated
        assert model[0].precision_damping is None
        states.append(model.state_dict())
    assert_same_bits(*states)


def test_natural_gradients_are_no_jacobians():
    model, _, natural = start()
    x = correlated(5, WIDTHS[0], 1)
    with pytest.raises(ValueError, match="0 runs in mode 'preconditioned'"):
        prong.exact_fisher(model, x, "gaussian", ["2.weight"])
    natural.convert("fold")
    assert prong.exact_fisher(model, x, "gaussian", ["2.bias"]).matrix.shape == (60, 60)


@pytest.mark.parametrize("share", [None, 0.1])
@pytest.mark.parametrize("change", ["none", "scaled", "accumulated", "replaced", "one row more"])
def test_the_step_control_measures_the_gradient_that_is_used(change, share):
    """The norm of the last backward pass counts only for the gradient that it gave."""
    model, optimizer, natural = start(1e-9, leading=share)
    advance(model, optimizer, natural, 0, 4)
    layer = model[0]
    assert (layer.precision_damping is None) == (share is None)
    nn.functional.mse_loss(model(correlated(16, WIDTHS[0], 1)), correlated(16, 60, 2)).backward()
    if change == "scaled":
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    elif change == "accumulated":
        model(correlated(16, WIDTHS[0], 5)).square().mean().backward()
    elif change == "replaced":
        layer.weight.grad = layer.weight.grad * 2
    elif change == "one row more":
        with torch.no_grad():
            layer.weight.grad[-1] += 1
    assert layer.last_pass._square is not None
    wanted = {}
    for name, each in (("0", model[0]), ("2", model[2])):
        whole = each.preconditioner.whole()[0]
        inverse, gradient = torch.linalg.inv(whole), each.weight.grad
        square = ((gradient @ inverse) * gradient).sum() + each.bias.grad.square().sum()
        # W has moved by rounding only since the last reparametrisation, at step 4: ρ is 1e-9.
        norm = ((each.weight.detach() @ inverse) * each.weight.detach()).sum().sqrt()
        allowed = 1e-9 / (1 + 4 / 50) ** 0.5 * norm
        wanted[name] = float(allowed / (0.01 * square.sqrt()))
        assert wanted[name] < 1
    optimizer.step()
    for name, scale in wanted.items():
        assert float(natural.control.scales[name]) == pytest.approx(scale, rel=1e-8)
    assert layer.last_pass._square is None
    natural.detach()
    assert layer.last_pass is None


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("whitening", ["full", "diagonal", "centring"])
def test_narrow_layers_in_float32(width, whitening):
    model = prong.whiten(nn.Sequential(nn.Linear(width, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    natural = reparametrizer(model, optimizer, mode="preconditioned", kind=whitening)
    report = natural.initialize([torch.randn(50, width)], "preserve")
    assert report.layers["0"].updated
    assert report.layers["0"].condition_after == pytest.approx(1, abs=2)

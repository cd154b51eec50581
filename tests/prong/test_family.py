"""The rest of the paper's family: D, two-sided, diagonal, centring, compression, Fisher."""

from __future__ import annotations

import pytest
import torch
from exact import EXACT, reparametrizer
from small_runs import dense, normal
from torch import nn

import prong
from prong.analysis.fisher import output_fisher


def mlp():
    return dense((5, 6, 4, 3))


def attach(model, lr=0.05, **options):
    prong.whiten(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    options = {**EXACT, "step_limit": None, **options}
    return optimizer, reparametrizer(model, optimizer, **options)


X = normal(64, 5) @ normal(5, 5, seed=1) + 1.0
Y = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(2))


def loss_of(model, x=X, y=Y):
    return nn.functional.cross_entropy(model(x), y)


@pytest.mark.parametrize("bias", [True, False])
def test_batch_diagonal_gives_every_whitened_unit_variance_one(bias):
    model = nn.Sequential(nn.Linear(5, 4, bias=bias)).double()
    optimizer, natural = attach(model, lr=0.0, batch_diagonal=True, samples=64, damping=0.1)
    natural.initialize([X], "preserve")
    before = model.eval()(X).detach()
    model.train()
    drifted = X * torch.tensor([3.0, 1, 0.2, 1, 2])
    model(drifted).square().sum().backward()
    optimizer.step()
    layer = model[0]
    assert (model(X) - before).abs().max() < 1e-12
    units = (drifted - layer.mean[0]) @ layer.whitener[0].T
    spread = units.var(0, correction=0) if bias else units.square().mean(0)
    damped = spread + 0.1 * layer.whitener[0].square().sum(1)
    assert (damped - 1).abs().max() < 1e-12


def test_batch_diagonal_step_equals_the_closed_form():
    # D is applied with the gradients in hand: the step is −η g_W (DU)ᵀ(DU), momentum included.
    model = nn.Sequential(nn.Linear(5, 3, bias=False)).double()
    optimizer, natural = attach(model, batch_diagonal=True, samples=64, lr=0.1)
    natural.initialize([X], "preserve")
    covector = torch.zeros(3, 5, dtype=torch.float64)
    for seed in range(3):
        x = normal(32, 5, seed=10 + seed) * (1 + seed)
        weight = prong.fold(model)[0].weight.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.linear(x, weight).cos().sum(), weight)
        model(x).cos().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        u = model[0].whitener[0]
        covector = 0.9 * covector + gradient
        step = covector @ u.T @ u
        moved = prong.fold(model)[0].weight - weight
        assert (moved + 0.1 * step).abs().max() < 1e-12


def test_diagonal_and_centring_are_settings_of_the_same_class():
    for kind in ("diagonal", "centring"):
        model = mlp()
        _, natural = attach(model, kind=kind, samples=64, damping=0.1)
        report = natural.initialize([X], "preserve")
        u = model[0].whitener[0]
        expected = torch.ones(5).double()
        if kind == "diagonal":
            expected = (X.var(0, correction=0) + 0.1).rsqrt()
        assert (u - torch.diag(expected)).abs().max() < 1e-12
        assert (model[0].mean[0] - X.mean(0)).abs().max() < 1e-12
        assert report.layers["0"].whitening_error > 1e-3


@pytest.mark.parametrize("normalized", [True, False])
def test_two_sided_step_equals_the_closed_form(normalized):
    # ΔW = −η P_δ (g_W − g_b cᵀ) P_h and Δb = −η P_δ g_b − ΔW c, with d inside Rᵀ.
    model = nn.Sequential(nn.Linear(5, 3)).double()
    optimizer, natural = attach(
        model, two_sided=prong.TwoSided(damping=0.2, normalized=normalized),
        period=1, samples=64, damping=0.1, root="pca", momentum="reset",
    )  # fmt: skip
    loss_of(model).backward()
    optimizer.step()
    optimizer.zero_grad()
    logits = model(X).detach().requires_grad_()
    before = logits.detach().clone()
    first = prong.fold(model)[0]
    loss_of(model)
    natural.step()
    assert (model(X) - before).abs().max() < 1e-12
    weight, bias = first.weight.detach(), first.bias.detach()
    r, u, c = (
        model[0].output_whitener[0].clone(), model[0].whitener[0].clone(), model[0].mean[0].clone()
    )  # fmt: skip
    output_metric = r.T @ r
    if normalized:
        assert float(torch.trace(output_metric)) == pytest.approx(3)
    plain = nn.Linear(5, 3).double()
    plain.load_state_dict({"weight": weight, "bias": bias})
    loss_of(plain).backward()
    loss_of(model).backward()
    optimizer.step()
    g_w, g_b = plain.weight.grad, plain.bias.grad
    d_w = -0.05 * output_metric @ (g_w - torch.outer(g_b, c)) @ u.T @ u
    d_b = -0.05 * output_metric @ g_b - d_w @ c
    after = prong.fold(model)[0]
    assert (after.weight - weight - d_w).abs().max() < 1e-12
    assert (after.bias - bias - d_b).abs().max() < 1e-12


def test_two_sided_r_whitens_the_gradients_it_saw():
    model = nn.Sequential(nn.Linear(5, 3)).double()
    optimizer, natural = attach(
        model, two_sided=prong.TwoSided(damping=1e-6, normalized=False), period=1,
        samples=64,
    )  # fmt: skip
    logits = model(X)
    delta = torch.autograd.grad(nn.functional.cross_entropy(logits, Y, reduction="sum"), logits)[0]
    loss_of(model).backward()
    optimizer.zero_grad()
    report = natural.refresh()
    r = model[0].output_whitener[0]
    moment = delta.T @ delta / 64
    values = torch.linalg.eigvalsh(r @ moment @ r.T)
    assert values[1:] == pytest.approx([1.0, 1.0], abs=1e-3)
    assert values[0] < 1e-3  # softmax's δ sum to zero: one direction is dead
    assert report.layers["0"].output_condition > 1e3


def test_sampled_fisher_leaves_gradients_alone_and_finds_the_exact_factor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3)).double()
    x = X[:8].repeat(3000, 1)
    _, natural = attach(model, two_sided=prong.TwoSided("sampled"), period=10, samples=10**6)
    exact = prong.kronecker(model, "0", X[:8]).output
    outputs = model(x)
    assert natural.sample_fisher(outputs)
    assert model[0].weight.grad is None
    moments = model[0].backward_moments
    found = moments.second_moment(torch.zeros_like(moments.mean))[0]
    assert (found - exact).abs().max() < 0.03 * exact.abs().max()
    # the loss's own backward pass does not count
    nn.functional.cross_entropy(outputs, Y[:8].repeat(3000)).backward()
    assert float(moments.count) == len(x)


def test_adam_state_follows_the_basis():
    model = mlp()
    prong.whiten(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    natural = reparametrizer(model, optimizer, samples=64, **EXACT)
    assert natural.settings.root == "zca"  # Adam acts on single coordinates: the basis matters
    natural.initialize([X], "preserve")
    loss_of(model).backward()
    optimizer.step()
    state = optimizer.state[model[0].weight]
    u, c = model[0].whitener[0].clone(), model[0].mean[0].clone()
    m = state["exp_avg"].clone()
    m_d = optimizer.state[model[0].bias]["exp_avg"].clone()
    squares = state["exp_avg_sq"].clone()
    squares_d = optimizer.state[model[0].bias]["exp_avg_sq"].clone()
    natural.initialize([2 * X - 1], "preserve")
    u2, c2 = model[0].whitener[0], model[0].mean[0]
    expected = (m @ torch.linalg.inv(u).T - torch.outer(m_d, c2 - c)) @ u2.T
    assert (state["exp_avg"] - expected).abs().max() < 1e-12
    # By the squared entries of g_V′ = g_V (U′ U⁻¹)ᵀ − g_d (U′ (c′ − c))ᵀ with uncorrelated g.
    carried = squares @ (u2 @ torch.linalg.inv(u)).square().T
    carried += torch.outer(squares_d, (u2 @ (c2 - c)).square())
    assert (state["exp_avg_sq"] - carried).abs().max() < 1e-12 * carried.max()
    assert (carried - squares).abs().max() > 0.1 * squares.max()
    assert torch.equal(optimizer.state[model[0].bias]["exp_avg_sq"], squares_d)


# Fisher and diagnostics


def brute_force(model, x, whole):
    parameters = list(model.parameters())
    fisher = 0
    for example in x:
        logits = model(example[None])
        p = logits.softmax(-1).detach()[0]
        for label in range(len(p)):
            gradients = torch.autograd.grad(
                logits.log_softmax(-1)[0, label], parameters, retain_graph=True
            )
            g = torch.cat([part.flatten() for part in gradients])
            fisher = fisher + p[label] * torch.outer(g, g) / len(x)
    return fisher


@pytest.mark.parametrize("whitened", [False, True])
def test_exact_fisher_equals_per_example_gradients(whitened):
    model = mlp()
    if whitened:
        attach(model, samples=64)[1].initialize([X], "preserve")
    fisher = prong.exact_fisher(model, X[:10])
    expected = brute_force(model, X[:10], fisher)
    assert (fisher.matrix - expected).abs().max() < 1e-10
    block = prong.exact_fisher(model, X[:10], names=["2.weight"])
    assert (block.matrix - fisher.block("2.weight")).abs().max() < 1e-12
    assert 0 < fisher.rank() <= 2 * 10
    with pytest.raises(ValueError, match="names='no'"):
        fisher.block("no")
    with pytest.raises(ValueError, match="likelihood='poisson'"):
        prong.exact_fisher(model, X[:10], "poisson")


def test_output_fisher_of_every_likelihood():
    z = normal(1, 2)
    p = z.sigmoid()[0]
    assert torch.allclose(output_fisher(z, "bernoulli")[0], torch.diag(p * (1 - p)))
    assert torch.equal(output_fisher(z, "gaussian")[0], torch.eye(2).double())
    q = z.softmax(-1)[0]
    assert torch.allclose(output_fisher(z, "categorical")[0], torch.diag(q) - torch.outer(q, q))


@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_whitening_leaves_the_condition_that_the_damping_sets(damping):
    # One layer and a Gaussian likelihood: F is I ⊗ E[(h − c)(h − c)ᵀ], and whitened I ⊗ λ/(λ + ε).
    model = nn.Sequential(nn.Linear(5, 3)).double()
    names = {"likelihood": "gaussian", "names": ["0.weight"]}
    values = torch.linalg.eigvalsh(torch.cov(X.T, correction=0))
    before = prong.exact_fisher(model, X - X.mean(0), **names).condition_number()
    assert before == pytest.approx(float(values[-1] / values[0]))
    attach(model, samples=64, damping=damping)[1].initialize([X], "preserve")
    after = prong.exact_fisher(model, X, **names).condition_number()
    shares = values / (values + damping)
    assert after == pytest.approx(float(shares[-1] / shares[0]))
    assert after < before


def test_kronecker_is_exact_where_delta_does_not_depend_on_h():
    # One linear layer and a Gaussian likelihood: δ's second moment is I for every input.
    model = nn.Sequential(nn.Linear(5, 3)).double()
    found = prong.kronecker(model, "0", X, "gaussian")
    assert found.error < 1e-12
    assert (found.output - torch.eye(3)).abs().max() < 1e-12
    assert prong.kronecker(mlp(), "2", X).error > 1e-3
    attach(model, samples=64, damping=1e-9)[1].initialize([X], "preserve")
    white = prong.kronecker(model, "0", X, "gaussian")
    assert (white.input - torch.eye(5)).abs().max() < 1e-5
    assert white.error < 1e-10
    with pytest.raises(ValueError, match="layer='9'"):
        prong.kronecker(model, "9", X)


def test_whiteness_reports_spectra_and_rank():
    model = mlp()
    attach(model, samples=64, damping=1e-9)[1].initialize([X], "preserve")
    dead = X.clone()
    dead[:, 0] = 3.0
    found = prong.whiteness(model, [X], samples=64)["0"]
    assert found.whitening_error < 1e-5
    exact = torch.linalg.eigvalsh(torch.cov(X.T, correction=0)).flip(0)
    assert (found.spectrum[0] - exact).abs().max() < 1e-10
    assert prong.whiteness(model, [dead], samples=64)["0"].rank == 4


def test_figure_2_draws_and_matplotlib_comes_only_then():
    pytest.importorskip("matplotlib")
    fisher = prong.exact_fisher(mlp(), X[:5]).matrix
    figure = prong.figure2(fisher, fisher / 2, {"PRONG": [100.0, 4.0], "SGD": [100.0, 90.0]})
    assert len(figure.axes) == 5
    assert len(prong.spectra({"0": torch.ones(1, 4)}).axes) == 1


# Compression


def low_rank_input(rank=3, features=20):
    return normal(200, rank, seed=3) @ normal(rank, features, seed=4) + 0.5


def test_compression_drops_units_and_keeps_the_function():
    x = low_rank_input()
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    attach(model, samples=200)[1].initialize([x], "preserve")
    before = model(x)
    plain, reports = prong.compress(model, [x], tolerance=1e-6, samples=200)
    assert reports[0].kept == 3
    assert reports[0].split
    assert reports[0].multiply_adds == (320, 3 * 36)
    assert isinstance(plain[0], nn.Sequential)
    assert (plain(x) - before).abs().max() < 1e-5
    assert isinstance(model[0], prong.Whitened)


def test_compression_error_is_what_it_says():
    x = normal(500, 8) @ normal(8, 8, seed=1)
    model = nn.Sequential(nn.Linear(8, 8)).double()
    attach(model, samples=500)[1].initialize([x], "preserve")
    y = model(x).detach()
    for tolerance in (0.0, 0.05, 0.3, 0.7):
        plain, (report,) = prong.compress(model, [x], tolerance=tolerance, samples=500)
        error = ((plain(x).detach() - y).square().sum() / (y - y.mean(0)).square().sum()).sqrt()
        assert float(error) == pytest.approx(report.error, abs=1e-7)
        assert report.error <= tolerance + 1e-9
        assert report.split == (2 * report.kept < 8)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_compression_of_convolutions(groups, transposed):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    torch.manual_seed(0)
    mix = normal(2, 2, 6, seed=5)
    latent = normal(10, 2, 2, 5, 5)
    x = torch.einsum("bgkhw,gkc->bgchw", latent, mix).reshape(10, 12, 5, 5)
    layer = kind(12, 6, 3, padding=1, stride=2, groups=groups, bias=not transposed)
    model = nn.Sequential(layer).double()
    attach(model, samples=10, positions=None)[1].initialize([x], "preserve")
    plain, (report,) = prong.compress(model, [x], tolerance=1e-7, samples=10)
    assert report.kept == (2 if groups == 2 else 4)
    assert report.split
    assert (plain(x) - model(x)).abs().max() < 1e-5


def test_compression_refuses_bad_arguments():
    model = mlp()
    with pytest.raises(ValueError, match="no whitened layer"):
        prong.compress(model, [X])
    attach(model)
    with pytest.raises(ValueError, match="tolerance=1"):
        prong.compress(model, [X], tolerance=1.0)

"""Moments merge exactly, and bad data never gets into them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact import EXACT, reparametrizer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import prong
from prong.linalg import roots
from prong.linalg.layout import sampling_stride
from prong.statistics.moments import Moments


def moments_of(parts, groups=2, features=3):
    moments = Moments(groups, features, dtype=torch.float64, device=torch.device("cpu"))
    for part in parts:
        moments.add(part, part.shape[1])
    return moments


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_micro_batches_and_merges_equal_one_pass(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(2, sum(sizes), 3, generator=generator, dtype=torch.float64) + 1e3
    parts = samples.split(sizes, 1)
    whole, micro, merged = moments_of([samples]), moments_of(parts), moments_of([])
    for part in parts:
        merged.merge(moments_of([part]))
    for group in range(2):
        expected = np.cov(samples[group].numpy().T, bias=True)
        for moments in (whole, micro, merged):
            assert float(moments.count) == sum(sizes)
            np.testing.assert_allclose(moments.covariance()[group], expected, atol=1e-9)
            np.testing.assert_allclose(moments.mean[group], samples[group].mean(0), rtol=1e-13)


def test_gradient_accumulation_equals_the_full_batch():
    def run(pieces):
        torch.manual_seed(0)
        model = prong.whiten(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        natural = reparametrizer(
            model,
            optimizer,
            period=3,
            samples=24,
            two_sided=prong.TwoSided(),
            batch_diagonal=True,
            **EXACT,
        )
        generator = torch.Generator().manual_seed(1)
        for _ in range(9):
            x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
            for part in x.chunk(pieces):
                # δ is that of one example's loss: each piece's loss is a mean over the piece.
                loss = (model(part) - 1).square().sum(1).mean() / pieces
                (loss * pieces).backward()
            for parameter in model.parameters():
                parameter.grad /= pieces
            optimizer.step()
            optimizer.zero_grad()
            natural.step()
        assert natural.report.layers["0"].samples == 24
        assert natural.gathering.window(natural.units[0]) == 2
        return torch.cat([p.detach().flatten() for p in prong.fold(model).parameters()])

    assert (run(1) - run(4)).abs().max() < 1e-10


@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 64))
def test_the_cap_on_positions_holds_and_spreads_over_columns(positions, row, cap):
    stride = sampling_stride(positions, row, cap)
    assert len(range(0, positions, stride)) <= max(cap, 1)
    assert stride == 1 or np.gcd(stride, row) == 1


BAD = {
    "nan": lambda x: x.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(float("nan"))),
    "inf": lambda x: x.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(float("inf"))),
    "overflow": lambda x: x * 1e30,
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_batch_never_enters_the_statistics(kind):
    model = prong.whiten(nn.Sequential(nn.Linear(3, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    natural = reparametrizer(model, optimizer, period=4, samples=1000, **EXACT)
    good = [torch.randn(6, 3) for _ in range(3)]
    for x in [good[0], BAD[kind](good[0]), *good[1:]]:
        model(x).sum().backward()
        model.zero_grad()
        optimizer.step()
        report = natural.step()
    layer = report.layers["0"]
    assert (layer.updated, layer.samples, layer.rejected) == (True, 18, 1)
    assert (model[0].mean[0] - torch.cat(good).mean(0)).abs().max() < 1e-6
    # and if nothing good is seen, Φ stays
    kept = model[0].whitener.clone()
    for _ in range(4):
        model(BAD[kind](good[0]))
        optimizer.step()
        report = natural.step()
    assert report.layers["0"].reason == "no finite sample was seen"
    assert report.layers["0"].rejected == 4
    assert torch.equal(model[0].whitener, kept)


def hostile(name):
    x = torch.randn(40, 6)
    return {
        "constant": torch.full((40, 6), 3.0),
        "zero": torch.zeros(40, 6),
        "dead": x * torch.tensor([1.0, 0, 1, 0, 0, 1]),
        "rank one": x[:, :1] * torch.arange(1.0, 7),
        "huge": x * 1e15,
        "tiny": x * 1e-25,
        "mixed scales": x * torch.logspace(-6, 6, 6),
        "huge mean": x + 1e6,
        "one sample": x[:1],
        "few samples": x[:3],
    }[name]


@pytest.mark.parametrize("root", roots.ROOTS)
@pytest.mark.parametrize(
    "name",
    [
        "constant", "zero", "dead", "rank one", "huge", "tiny", "mixed scales", "huge mean",
        "one sample", "few samples",
    ],
)  # fmt: skip
def test_hostile_activations_leave_a_finite_network_and_its_function(name, root):
    torch.manual_seed(0)
    x = hostile(name).double()
    model = prong.whiten(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options = {**EXACT, "root": root, "damping": 1e-3}
    natural = reparametrizer(model, optimizer, samples=40, **options)
    before = model(x).detach()
    report = natural.initialize([x], "preserve")
    # cond(U) times the size of what W multiplies bounds what rounding can do here.
    scale = max(1.0, float(x.abs().max()))
    worst = max(float(torch.linalg.cond(layer.whitener).max()) for layer in (model[0], model[2]))
    assert (model(x) - before).abs().max() < 1e-13 * scale * worst
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert all(layer.updated or layer.reason for layer in report.layers.values())


def test_a_failed_decomposition_is_retried_in_float64_and_counted(monkeypatch):
    real, seen = torch.linalg.cholesky_ex, []

    def fails_in_float32(matrix, **options):
        seen.append(matrix.dtype)
        factor, info = real(matrix, **options)
        return factor, info + (matrix.dtype == torch.float32)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", fails_in_float32)
    natural, x = small(decomposition_dtype=torch.float32)
    report = natural.initialize([x], "preserve")
    assert report.layers["0"].fallback == "float64"
    assert report.layers["0"].updated
    assert report.fallbacks == natural.fallbacks == 1
    assert seen[:2] == [torch.float32, torch.float64]


@pytest.mark.parametrize("mode", ["fold", "preconditioned"])
def test_layers_in_float64_are_decomposed_in_float64(mode):
    """Where nothing is set but the layers' own type: P is Σ + εI inverted to float64's rounding."""
    torch.manual_seed(0)
    model = prong.whiten(nn.Sequential(nn.Linear(6, 3).double()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    savings = prong.Savings(leading=None)
    natural = prong.Reparametrizer(model, optimizer, damping=0.1, mode=mode, savings=savings)
    x = torch.randn(500, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    natural.initialize([x], "preserve")
    layer = model[0]
    found = layer.precision_matrix
    if found is None:
        found = layer.whitener.transpose(1, 2) @ layer.whitener
    damped = np.cov(x.numpy().T, bias=True) + 0.1 * np.eye(6)
    np.testing.assert_allclose(found[0].numpy() @ damped, np.eye(6), atol=1e-11)


def test_then_by_eigenvalues_and_then_the_last_good_phi_is_kept(monkeypatch):
    natural, x = small()
    natural.initialize([x], "preserve")

    def fails(*_):
        raise roots.RootFailure

    monkeypatch.setattr(roots, "_METHODS", {**roots._METHODS, "cholesky": fails})
    assert natural.initialize([2 * x], "preserve").layers["0"].fallback == "eigh"
    kept = natural.model[0].whitener.clone()
    weight = natural.model[0].weight.detach().clone()

    def explode(matrix):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", explode)
    layer = natural.initialize([4 * x], "preserve").layers["0"]
    assert (layer.updated, layer.fallback) == (False, "kept")
    assert layer.reason == "the decomposition failed"
    assert torch.equal(natural.model[0].whitener, kept)
    assert torch.equal(natural.model[0].weight, weight)
    assert natural.fallbacks == 2


def small(**options):
    torch.manual_seed(0)
    model = prong.whiten(nn.Sequential(nn.Linear(4, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(50, 4) @ torch.randn(4, 4) + 1
    return reparametrizer(model, optimizer, **{**EXACT, "samples": 50, **options}), x


def test_the_report_says_what_was_done():
    natural, x = small(damping=0.1)
    covariance = torch.cov(x.T.double(), correction=0)
    values = torch.linalg.eigvalsh(covariance)
    report = natural.initialize([x], "preserve")
    layer = report.layers["0"]
    damped = torch.linalg.eigvalsh(x.T.double() @ x.double() / 50) + 0.1
    assert layer.condition_before == pytest.approx(float(damped[-1] / damped[0]), rel=1e-5)
    assert layer.condition_after == pytest.approx(1)
    assert layer.whitening_error < 1e-9 < layer.whitening_error_before
    assert layer.effective_dimension == pytest.approx(float((values / (values + 0.1)).sum()))
    assert layer.samples == layer.examples == 50
    assert layer.damping == pytest.approx(0.1)
    assert 0 < layer.seconds <= report.seconds
    assert "0" in str(report)
    assert report.as_dict()["layers"]["0"]["samples"] == 50


def test_estimates_of_wide_layers_agree_with_the_exact_numbers(monkeypatch):
    from prong.linalg import conditioning

    torch.manual_seed(0)
    a = torch.randn(1, 60, 60, dtype=torch.float64)
    matrix = a @ a.transpose(1, 2) / 60 + 0.05 * torch.eye(60, dtype=torch.float64)
    for u in (
        torch.eye(60)[None].double(),
        torch.randn(1, 60, 60).double().tril() + 8 * torch.eye(60),
    ):
        exact = conditioning.conditioning(u, matrix)
        monkeypatch.setattr(conditioning, "EXACT", 8)
        estimated = conditioning.conditioning(u, matrix)
        monkeypatch.undo()
        assert float(estimated[0] / exact[0]) == pytest.approx(1, rel=0.15)
        assert float(estimated[1] / exact[1]) == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize("root", roots.ROOTS)
def test_every_root_is_a_root_of_the_damped_inverse(root):
    torch.manual_seed(1)
    a = torch.randn(3, 7, 5, dtype=torch.float64)
    covariance = a.transpose(1, 2) @ a / 7
    damping = torch.tensor([0.1, 0.01, 1.0], dtype=torch.float64)
    found = roots.whitening_root(covariance, damping, root, torch.float64)
    precision = torch.linalg.inv(roots.damped(covariance, damping))
    assert (found.whitener.transpose(1, 2) @ found.whitener - precision).abs().max() < 1e-9
    identity = torch.eye(5, dtype=torch.float64)
    assert (found.whitener @ found.inverse - identity).abs().max() < 1e-10
    assert found.fallback == ""

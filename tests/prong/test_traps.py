"""The traps that other implementations fell into, one test each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exact import EXACT, reparametrizer
from small_runs import normal
from torch import nn
from torch.utils.checkpoint import checkpoint

import prong
from prong.refresh.collect import gather, new_moments


def attach(model, x, **options):
    model = prong.whiten(model.double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    fixed = {"samples": len(x), "positions": None, "step_limit": None, "root": "pca"}
    options = {**EXACT, **fixed, **options}
    natural = reparametrizer(model, optimizer, **options)
    natural.initialize([x], "preserve")
    return model, optimizer, natural


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_convolution_pads_first_and_centres_after(mode):
    # Centring before zero padding would leave −c at the border; here by hand: pad, U(h − c), valid.
    x = normal(5, 3, 6, 6) + 4.0
    layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode, dtype=torch.float64)
    model, _, _ = attach(nn.Sequential(layer), x)
    layer = model[0]
    padded = F.pad(x, (1, 1, 1, 1), "constant" if mode == "zeros" else mode)
    centred = padded - layer.mean[0][:, None, None]
    white = torch.einsum("ij,bjhw->bihw", layer.whitener[0], centred)
    assert layer.mean.abs().min() > 3
    by_hand = F.conv2d(white, layer.weight, layer.bias)
    assert (model(x) - by_hand).abs().max() < 1e-11


def test_border_zeros_are_not_samples():
    x = normal(5, 3, 6, 6) + 4.0
    model, _, natural = attach(nn.Sequential(nn.Conv2d(3, 4, 5, padding=2)), x)
    assert natural.report.layers["0"].samples == 5 * 6 * 6
    assert (model[0].mean[0] - x.mean((0, 2, 3))).abs().max() < 1e-12


def test_every_group_has_its_own_whitener():
    x = normal(40, 6, 5)
    x[:, 3:] = 3 * x[:, 3:] + x[:, :3]  # groups of different scale, and correlated with each other
    model, _, _ = attach(nn.Sequential(nn.Conv1d(6, 4, 3, groups=2)), x, damping=1e-9)
    layer = model[0]
    assert layer.whitener.shape == (2, 3, 3)
    pixels = x.reshape(40, 2, 3, 5).permute(1, 0, 3, 2).reshape(2, -1, 3)
    white = (pixels - layer.mean[:, None]) @ layer.whitener.transpose(1, 2)
    covariance = white.transpose(1, 2) @ white / white.shape[1]
    assert (covariance - torch.eye(3, dtype=x.dtype)).abs().max() < 1e-6


def test_rows_and_columns_of_u_are_not_mixed_up():
    # U's rows are the whitened units: U Σ Uᵀ = I. With columns, Uᵀ Σ U, it is nowhere near.
    x = normal(300, 5) @ normal(5, 5, seed=1)
    model, _, _ = attach(nn.Sequential(nn.Linear(5, 2)), x, damping=1e-9)
    u = model[0].whitener[0]
    covariance = torch.cov(x.T, correction=0)
    identity = torch.eye(5, dtype=x.dtype)
    assert (u @ covariance @ u.T - identity).abs().max() < 1e-6
    assert (u.T @ covariance @ u - identity).abs().max() > 0.1
    variances = 1 / u.square().sum(1)
    assert (variances[:-1] >= variances[1:]).all()  # most significant unit first


def test_momentum_follows_the_basis():
    # A pause: no gradient, only momentum, the covector g. It moves W by −0.9 η (g_W − g_b cᵀ) P.
    x = normal(50, 4) @ normal(4, 4, seed=1) + 1.0
    torch.manual_seed(0)
    model, optimizer, natural = attach(nn.Sequential(nn.Linear(4, 3)), x, damping=0.1)
    plain = [p.detach().clone().requires_grad_() for p in prong.fold(model)[0].parameters()]
    g_weight, g_bias = torch.autograd.grad(nn.functional.linear(x, *plain).square().mean(), plain)
    model(x).square().mean().backward()
    optimizer.step()
    gather(model, natural._layers(), [3 * x + 2], natural.forward)
    assert natural.refresh().layers["0"].updated
    scale, before = natural.control.scales.get("0", 1.0), prong.fold(model)[0].weight.detach()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    u, mean = model[0].whitener[0], model[0].mean[0]
    rate = optimizer.param_groups[0]["lr"]
    wanted = -0.9 * rate * scale * (g_weight - torch.outer(g_bias, mean)) @ u.T @ u
    assert wanted.abs().max() > 1e-3
    assert (prong.fold(model)[0].weight - before - wanted).abs().max() < 1e-12


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second, self.reentrant = nn.Linear(4, 5), nn.Linear(5, 2), reentrant

    def forward(self, x):
        hidden = x
        if self.reentrant is None:
            hidden = self.first(x).tanh()
        else:
            hidden = checkpoint(lambda h: self.first(h).tanh(), x, use_reentrant=self.reentrant)
        return self.second(hidden)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("two_sided", [None, prong.TwoSided()])
def test_activation_checkpointing_does_not_count_twice(reentrant, two_sided):
    counts = []
    for mode in (None, reentrant):
        model = prong.whiten(Checkpointed(mode).double())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {**EXACT, "samples": 9, "two_sided": two_sided}
        natural = reparametrizer(model, optimizer, period=2, **options)
        for _ in range(2):
            model(normal(6, 4).requires_grad_()).square().mean().backward()
            assert natural.gathering.active
            if two_sided:
                counts.append(float(model.first.backward_moments.count))
            optimizer.step()
            report = natural.step()
        counts.append(report.layers["first"].samples)
    assert counts[: len(counts) // 2] == counts[len(counts) // 2 :]
    assert counts[-1] == 12


def test_statistics_only_come_from_training_mode():
    model = prong.whiten(nn.Sequential(nn.Linear(3, 2)))
    model[0].moments = new_moments(model[0])
    model.eval()(torch.ones(4, 3))
    assert float(model[0].moments.count) == 0
    model.train()(torch.ones(4, 3))
    assert float(model[0].moments.count) == 4


def test_casting_the_model_leaves_phi_wide():
    x = normal(60, 4) @ normal(4, 4, seed=1)
    model, _, _ = attach(nn.Sequential(nn.Linear(4, 3)), x)
    model.float()
    kept = model[0].whitener.clone()
    model.to(torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16
    assert model[0].whitener.dtype == torch.float32
    assert torch.equal(model[0].whitener, kept)
    assert model(x.bfloat16()).dtype == torch.bfloat16
    assert model.double()[0].whitener.dtype == torch.float64


def test_uneven_rounding_of_products_is_not_used_for_statistics():
    # TF32 keeps 11 bits, and whitening amplifies its error by cond(U): hence products in float64.
    x = normal(60, 4).float()
    model = prong.whiten(nn.Sequential(nn.Linear(4, 3)))
    torch.set_float32_matmul_precision("medium")
    try:
        model[0].moments = new_moments(model[0])
        assert prong.fold(model)(x).allclose(model(x))
        from prong.linalg.dtypes import product_dtype

        assert product_dtype(torch.float32, torch.device("cpu")) == torch.float64
    finally:
        torch.set_float32_matmul_precision("highest")
    assert product_dtype(torch.float32, torch.device("cpu")) == torch.float32


@pytest.mark.filterwarnings("ignore:whitened .*Less than half:UserWarning")
def test_transformer_fast_path_does_not_read_whitened_weights():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(8, 8), layer)
    x = torch.randn(2, 5, 8)
    prong.whiten(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    natural = reparametrizer(model, optimizer, samples=10)
    before = model.eval()(x).detach()
    natural.initialize([x], "preserve")
    assert (model(x) - before).abs().max() < 1e-5
    reasons = {s.name: s.reason for s in natural.coverage}
    assert "reads its weight directly" in reasons["1.linear1"]
    assert reasons["0"] == ""


def test_folded_kernels_are_contiguous():
    # A transposed view as the kernel of a convolution fails in the backward pass on CPUs.
    for kind in (nn.Conv2d, nn.ConvTranspose2d):
        model = prong.whiten(nn.Sequential(kind(2, 1, 2, bias=False)).double())
        assert model[0].fold()[0].is_contiguous()
        model(normal(4, 2, 6, 6)).sum().backward()

"""On a CUDA device: the same promises, with TF32, gradient scaling and a device move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prong

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


@pytest.mark.parametrize("tf32", [False, True])
def test_reparametrisation_keeps_the_function(tf32):
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        model = prong.whiten(network()).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
        natural = prong.Reparametrizer(model, optimizer, period=5, samples=128)
        x = torch.randn(64, 3, 6, 6, device="cuda") + 1
        before = model(x).detach()
        natural.initialize([x], "preserve")
        assert (model(x) - before).abs().max() < 1e-2 * before.abs().max()
        folded = prong.fold(model)
        assert (folded(x) - model(x)).abs().max() < 1e-2 * before.abs().max()
    finally:
        torch.set_float32_matmul_precision("highest")


def test_gradient_scaling_and_half_precision():
    model = prong.whiten(network()).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
    natural = prong.Reparametrizer(model, optimizer, period=5, samples=64)
    scaler = torch.amp.GradScaler("cuda")
    y = torch.randint(0, 10, (64,), device="cuda")
    losses = []
    for _ in range(20):
        x = torch.nn.functional.one_hot(y, 108).float().reshape(64, 3, 6, 6)
        with torch.autocast("cuda", torch.float16):
            loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        natural.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert natural.report is not None
    assert natural.report.layers["3"].updated
    assert model[3].whitener.dtype == torch.float32


def test_moving_to_the_device_in_mid_window():
    model = prong.whiten(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    natural = prong.Reparametrizer(model, optimizer, period=2, samples=16, batch_diagonal=True)
    model(torch.randn(8, 3, 6, 6)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    natural.step()
    model.cuda()
    model(torch.randn(8, 3, 6, 6, device="cuda")).sum().backward()
    optimizer.step()
    report = natural.step()
    assert report.layers["0"].examples == 16

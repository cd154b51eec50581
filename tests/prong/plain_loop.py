"""The plain training loop that other loops are held to, and the small network that it trains."""

from __future__ import annotations

import torch
from exact import EXACT, reparametrizer
from torch import nn

import prong

WIDE = torch.float64


def data(number=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 6, generator=generator, dtype=WIDE)
    x = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(99), dtype=WIDE) + 1
    return x, torch.randn(number, 3, generator=generator, dtype=WIDE)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(WIDE)


def loss_of(model, x, y):
    return (model(x) - y).square().mean()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **options)


MODES = ("fold", "activations", "preconditioned")


def plain_loop(steps=12, make=sgd, **options):
    """The loop that all others are held to; the plain model that it ends with."""
    model = prong.whiten(network())
    optimizer = make(model)
    natural = reparametrizer(model, optimizer, period=4, samples=64, **{**EXACT, **options})
    natural.initialize([data()[0]])
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, *data(seed=step)).backward()
        optimizer.step()
        natural.step()
    return prong.fold(model)


def same(one, other, limit=1e-10):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert (a - b).abs().max() <= limit * b.abs().max()


def advance(model, optimizer, natural, start, steps):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, *data(seed=step)).backward()
        optimizer.step()
        natural.step()
    return [p.detach().clone() for p in model.parameters()]


def trained(mode="auto"):
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=4, samples=64, **{**EXACT, "mode": mode})
    natural.initialize([data()[0]])
    advance(model, optimizer, natural, 0, 6)
    return model, optimizer, natural

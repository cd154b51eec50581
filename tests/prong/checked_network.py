"""A small whitened network that `prong.check` looks at, right or wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from exact import EXACT, reparametrizer
from torch import nn

import prong

MODES = ["fold", "activations", "preconditioned"]


class Net(nn.Module):
    """Three dense layers, one of whose weights may be used a second time, beside its layer."""

    def __init__(self, beside=None, head=True):
        super().__init__()
        self.beside = beside
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        if not head:
            nn.init.zeros_(self.c.weight)

    def forward(self, x):
        hidden = self.a(x).tanh()
        if self.beside == "weight":
            hidden = hidden + F.linear(hidden, self.b.weight)
        if self.beside == "bias":
            hidden = hidden + self.b.bias
        return self.c(self.b(hidden).tanh())


def trained(model, x, mode="fold", steps=3, **options):
    """The whitened model after some steps, so that Φ is no longer trivial."""
    torch.manual_seed(1)
    prong.whiten(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {**EXACT, "period": 2, "samples": 16, "mode": mode, **options}
    natural = reparametrizer(model, optimizer, **options)
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        natural.step()
    return model, natural

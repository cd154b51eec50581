"""Optimizers of the table by name, and short runs with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prong

WIDE = torch.float64
RATES = {
    "Rprop": 1e-3, "Adadelta": 1.0, "AdaDelta": 1.0, "Adagrad": 1e-2, "Lion": 1e-3, "Tiger": 1e-3,
    "SignSGD": 1e-3, "ASGD": 5e-2, "SGD": 5e-2, "QHM": 5e-2, "SGDP": 5e-2, "PNM": 2e-2,
    "Prodigy": 1.0, "Muon": 5e-2, "SGDScheduleFree": 0.3, "SGDScheduleFreeClosure": 0.3,
    "SGDScheduleFreeReference": 0.3, "ScheduleFreeSGD": 0.3,
}  # fmt: skip
OPTIONS = {
    "SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
}  # fmt: skip


def make(name, parameters):
    """An optimizer of the table, with settings that fill its state."""
    package, kind = name.split(".")
    module = torch.optim if package == "torch" else pytest.importorskip(package)
    if package == "heavyball":
        module.utils.compile_mode = None  # compilation takes minutes and is theirs to test
    rate = RATES.get(kind, 1e-2)
    if kind == "Lookahead":
        return module.Lookahead(torch.optim.Adam(parameters, lr=rate), k=3)
    options = OPTIONS.get(kind, {}) if package == "torch" else {}
    return getattr(module, kind)(parameters, lr=rate, **options)


def train_mode(optimizer):
    if hasattr(optimizer, "train"):
        optimizer.train()


def only_matrices(name, model):
    """Muon takes matrices alone: the biases go to AdamW, in an optimizer of their own."""
    if name != "torch.Muon":
        return make(name, model.parameters())
    return [
        make(name, [p for p in model.parameters() if p.dim() == 2]),
        torch.optim.AdamW([p for p in model.parameters() if p.dim() == 1], lr=1e-2),
    ]


def every(optimizer):
    return optimizer if isinstance(optimizer, list) else [optimizer]


def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 12, generator=generator, dtype=WIDE)
    x = x @ torch.randn(12, 12, generator=generator, dtype=WIDE)
    x = (x - x.mean(0)) / x.std(0) + 0.5
    teacher = torch.randn(12, 4, generator=generator, dtype=WIDE)
    return x, (x @ teacher).argmax(1)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).to(WIDE)


def run(name, whitened, steps=40):
    """The mean loss of the last ten of some steps, and how far refreshes moved the outputs."""
    model, (x, y) = network(), problem()
    if whitened:
        prong.whiten(model)
    optimizers = every(only_matrices(name, model))
    natural = None
    if whitened:
        given = optimizers if len(optimizers) > 1 else optimizers[0]
        # The step control bounds SGD's steps on purpose: that is not what is looked at here.
        natural = prong.Reparametrizer(model, given, period=10, step_limit=None, automatic=False)
        natural.initialize([x])
    for each in optimizers:
        train_mode(each)
    losses, moved = [], 0.0

    def closure():
        for each in optimizers:
            each.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    for _ in range(steps):
        closure()
        for each in optimizers:
            takes = "Closure" in type(each).__name__ or name.endswith("LBFGS")
            each.step(closure) if takes else each.step()
        if natural is not None:
            with torch.no_grad():
                before = model(x)
                report = natural.step()
                if report is not None:
                    moved = max(moved, float((model(x) - before).abs().max() / before.abs().max()))
    assert natural is None or natural.steps == steps
    return sum(losses[-10:]) / 10, moved

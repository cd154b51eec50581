"""Networks, optimizers and options whose ranks share a reparametrisation."""

from __future__ import annotations

import torch
from small_runs import WIDE, sgd
from torch import nn

import prong
from prong.linalg import roots

STEPS, BATCH = 7, 12


def adam(parameters):
    # Directions without samples have a gradient of rounding errors, which a small ε would scale up.
    return torch.optim.Adam(parameters, lr=0.01, eps=1e-2)


def rprop(parameters):
    return torch.optim.Rprop(parameters, lr=1e-3)


class Unknown(torch.optim.SGD):
    """Holds a tensor whose meaning nobody knows."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("strange", torch.zeros_like(parameter)).add_(1)
        return super().step(closure)


def unknown(parameters):
    return Unknown(parameters, lr=1e-3)


# Options, the optimizer, and whether the path is the same for any number of ranks: not where the
# basis of directions without samples decides (pca), or where samples do not weigh the same.
QUICK = {
    "fold": ({"root": "pca", "damping": 0.1}, sgd, True),
    "activations": ({"mode": "activations", "root": "zca"}, adam, True),
    "preconditioned": ({"mode": "preconditioned"}, sgd, True),
    "leading": ({"mode": "preconditioned", "leading": 1.0}, sgd, True),
    "reset": ({"momentum": "reset"}, sgd, True),
    "newton-schulz": ({"root": "newton-schulz", "damping": 0.5}, sgd, True),
    "two-sided": ({"two_sided": prong.TwoSided(), "root": "cholesky"}, sgd, False),
    "batch diagonal": ({"batch_diagonal": True}, adam, False),
    "spread": ({"mode": "preconditioned", "spread": True}, sgd, True),
    "diagonal": ({"kind": "diagonal"}, sgd, True),
    "lost state": ({}, unknown, False),
    "rprop": ({}, rprop, False),
    "float32": ({"mode": "auto", "decomposition_dtype": torch.float32}, sgd, False),
}
SIZES = (1, 2, 4)
# Two ranks of those whose results differ in kind; the slow test has all cases on two.
ON_TWO = {name: QUICK[name] for name in ("fold", "preconditioned", "leading", "lost state")}
PLAIN, TURNS = {}, {"spread": True}
WHITENED = (PLAIN, TURNS, {"batch_diagonal": True}, {"two_sided": prong.TwoSided()})
SLOW = {
    f"{mode} {rule} {optimizer.__name__} {extra}": (
        {**mode, "momentum": rule, **extra},
        optimizer,
        mode.get("root") != "pca" and extra in (PLAIN, TURNS),
    )
    for modes, optimizers, extras in (
        ([{"root": root} for root in roots.ROOTS], (sgd, adam), WHITENED),
        ([{"mode": "activations", "root": "cholesky"}], (sgd, adam), (PLAIN,)),
        (
            [{"mode": "preconditioned", "leading": share} for share in (None, 0.1, 1.0)],
            (sgd,),
            (PLAIN, TURNS),
        ),
    )
    for mode in modes
    for optimizer in optimizers
    for rule in ("gradient", "reset")
    for extra in extras
}


def network(dtype=WIDE):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, groups=2),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(54, 33),
        nn.Tanh(),
        nn.Linear(33, 33),
        nn.Tanh(),
        nn.Linear(33, 33),
        nn.Linear(33, 3),
    )
    model[8].weight, model[8].bias = model[6].weight, nn.Parameter(torch.zeros(33))
    return model.to(dtype)


def halves(step, dtype=WIDE):
    """Two micro-batches of a step, inputs and labels; each is shared out over the ranks."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(BATCH, 2, 5, 5, generator=generator, dtype=WIDE) + 0.5
    return x.to(dtype).chunk(2), torch.randint(0, 3, (BATCH,), generator=generator).chunk(2)


def loss(outputs, labels):
    return nn.functional.cross_entropy(outputs, labels, reduction="sum") / BATCH

"""The methods that `benchmarks.untuned` compares: PRONG at its defaults, and what else there is.

Every optimizer is at its own defaults but for the rate. Weight decay is AdamW's default in Muon and
Newton-Muon too: Muon's own, ten times that, is meant for long trainings.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

import prong
from benchmarks import workloads
from benchmarks.newton_muon import NewtonMuon

Optimizers = Callable[[nn.Module, float], list[torch.optim.Optimizer]]


def sgd(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return SGD with momentum."""
    return [torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)]


def rmsprop(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return RMSprop."""
    return [torch.optim.RMSprop(model.parameters(), lr=rate)]


def adamw(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return AdamW."""
    return [torch.optim.AdamW(model.parameters(), lr=rate)]


def muon(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices, and AdamW for convolutions, biases and gains.

    torch's Muon takes no other parameters. "match_rms_adamw" gives its steps the size of AdamW's,
    so one rate serves both. It multiplies in bfloat16, also on CPUs that are slower at it.
    """
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    first = torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [first, *_companion(others, rate)]


def newton_muon(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return Newton-Muon for the dense layers' weights, and AdamW for the other parameters."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = {id(layer.weight) for layer in layers}
    others = [p for p in model.parameters() if id(p) not in weights]
    return [NewtonMuon(layers, lr=rate), *_companion(others, rate)]


def muon_on_v(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return `muon` for a whitened model: the recipe "Muon on V".

    After `prong.whiten` a dense layer's matrix is V, with W = V U. Muon's step in V is a step in W
    with the gradient g_W whitened on the right, as in Newton-Muon, and mapped back:

        ΔW = −η s msgn(g_W Uᵀ) U

    where g_W belongs to the centred inputs, if the layer has a bias, and s is √max(out, in) / 5.
    Both optimizers go to the Reparametrizer, which carries their momentum into each new basis:

        model = prong.whiten(model)
        optimizers = muon_on_v(model, rate)
        natural = prong.Reparametrizer(model, optimizers)
    """
    return muon(model, rate)


def _companion(others: list[nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(others, lr=rate)] if others else []


def _third_party(name: str, **options: object) -> Optimizers:
    """Return an optimizer of the package pytorch-optimizer."""

    def build(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
        made = getattr(importlib.import_module("pytorch_optimizer"), name)
        return [made(model.parameters(), lr=rate, **options)]

    return build


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        label: What the table calls it.
        optimizers: Makes its optimizers for a model, at a rate.
        whitened: Whether it trains the whitened model, with a Reparametrizer.
        first_order: Whether it counts among the first-order baselines.
        tuned: Whether its rate is chosen among several.
        rates: Which grid of rates it is given.
        cycle: Steps after which its costs repeat.
        weight: A training's time on an auto-encoder in units of SGD's, roughly; it is near 1 on the
            other networks, and only says how long there is to go.
        package: Distribution that it needs besides torch; empty: none.
    """

    label: str
    optimizers: Optimizers
    whitened: bool = False
    first_order: bool = False
    tuned: bool = True
    rates: str = "adam"
    cycle: int = 20
    weight: float = 1.0
    package: str = ""

    @property
    def missing(self) -> bool:
        """Whether its package is not installed."""
        return bool(self.package) and find_spec(self.package.replace("-", "_")) is None


METHODS = {
    "prong": Method("PRONG", sgd, whitened=True, tuned=False, cycle=100, weight=4),
    "sgd": Method("SGD", sgd, first_order=True, rates="sgd"),
    "bn+sgd": Method("BN + SGD", sgd, first_order=True, rates="sgd"),
    "rmsprop": Method("RMSprop", rmsprop, first_order=True, rates="rmsprop"),
    "adamw": Method("AdamW", adamw, first_order=True),
    "muon": Method("Muon", muon, weight=20),
    "newton-muon": Method("Newton-Muon", newton_muon, cycle=32, weight=13),
    "muon-on-v": Method("Muon on V", muon_on_v, whitened=True, cycle=100, weight=24),
    "soap": Method("SOAP", _third_party("SOAP"), weight=9, package="pytorch-optimizer"),
    "shampoo": Method(
        "Shampoo",
        _third_party("ScalableShampoo", preconditioning_compute_steps=100),
        rates="sgd",
        cycle=100,
        weight=4,
        package="pytorch-optimizer",
    ),
}


@dataclass
class Training:
    """A method at work on a model.

    Attributes:
        start: Seconds that whitening the model at t = 0 took.
    """

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    natural: prong.Reparametrizer | None
    start: float

    def step(self, x: Tensor, labels: Tensor | None) -> float:
        """Make one update and return the batch's loss; none is made from one that is not finite."""
        loss = workloads.loss(self.model(x), x, labels)
        value = float(loss.detach())
        if value - value != 0:
            return value
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        if self.natural is not None:
            self.natural.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return value


def begin(method: Method, model: nn.Module, rate: float, batches: Sequence[Tensor]) -> Training:
    """Attach a method to a model; nothing but the rate is set.

    Args:
        method: One of `METHODS`.
        model: Not whitened; it is changed.
        rate: The optimizers' learning rate.
        batches: Training inputs, for the statistics of a whitened start.
    """
    if not method.whitened:
        return Training(model, method.optimizers(model, rate), None, 0.0)
    start = time.perf_counter()
    model = prong.whiten(model)
    optimizers = method.optimizers(model, rate)
    natural = prong.Reparametrizer(model, optimizers)
    natural.initialize(batches)
    return Training(model, optimizers, natural, time.perf_counter() - start)

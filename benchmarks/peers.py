"""The methods that `benchmarks.untuned` compares: PRONG at its defaults, and what else there is.

Every optimizer is at its own defaults but for the rate; `pipelines.paper.peer_optimizers` builds
them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

import prong
from benchmarks import workloads
from pipelines.paper.peer_optimizers import (
    Build,
    adamw,
    muon,
    muon_on_v,
    newton_muon,
    of_package,
    rmsprop,
    sgd,
)


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
    optimizers: Build
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
    "soap": Method(
        "SOAP", of_package("pytorch_optimizer", "SOAP"), weight=9, package="pytorch-optimizer"
    ),
    "shampoo": Method(
        "Shampoo",
        of_package("pytorch_optimizer", "ScalableShampoo", preconditioning_compute_steps=100),
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

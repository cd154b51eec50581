"""The optimizers that PRONG is compared with, each as a user takes it from its package.

All are at their own defaults but for what is named here. Weight decay is AdamW's default in Muon
and Newton-Muon too: Muon's own, ten times that, is meant for long trainings.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipelines.paper.newton_muon import NewtonMuon

Optimizers = list[torch.optim.Optimizer]
Build = Callable[[nn.Module, float], Optimizers]


def sgd(model: nn.Module, rate: float) -> Optimizers:
    """Return SGD with momentum."""
    return [torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)]


def rmsprop(model: nn.Module, rate: float, momentum: float = 0.0) -> Optimizers:
    """Return RMSprop."""
    return [torch.optim.RMSprop(model.parameters(), lr=rate, momentum=momentum)]


def adam(model: nn.Module, rate: float) -> Optimizers:
    """Return Adam, without weight decay."""
    return [torch.optim.Adam(model.parameters(), lr=rate)]


def adamw(model: nn.Module, rate: float) -> Optimizers:
    """Return AdamW."""
    return [torch.optim.AdamW(model.parameters(), lr=rate)]


def muon(model: nn.Module, rate: float) -> Optimizers:
    """Return Muon for the matrices, and AdamW for convolutions, biases and gains.

    torch's Muon takes no other parameters. "match_rms_adamw" gives its steps the size of AdamW's,
    so one rate serves both. It multiplies in bfloat16, also on CPUs that are slower at it.
    """
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    first = torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [first, *_companion(others, rate)]


def newton_muon(model: nn.Module, rate: float, period: int = 32) -> Optimizers:
    """Return Newton-Muon for the dense layers' weights, and AdamW for the other parameters."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = {id(layer.weight) for layer in layers}
    others = [p for p in model.parameters() if id(p) not in weights]
    return [NewtonMuon(layers, lr=rate, period=period), *_companion(others, rate)]


def muon_on_v(model: nn.Module, rate: float) -> Optimizers:
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


def _companion(others: list[nn.Parameter], rate: float) -> Optimizers:
    return [torch.optim.AdamW(others, lr=rate)] if others else []


def of_package(module: str, name: str, **options: Any) -> Build:
    """Return what builds an optimizer of another package, which is imported when it is built.

    Args:
        module: To import.
        name: The optimizer's class.
        options: Beside the parameters and `lr`.
    """

    def build(model: nn.Module, rate: float) -> Optimizers:
        made = getattr(importlib.import_module(module), name)
        return [made(model.parameters(), lr=rate, **options)]

    return build

"""Checks of arguments; every message names the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from prong.refresh.tied_layers import TiedLayers


def optimizers_of(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """One optimizer or several, as a list; TypeError for anything else."""
    several = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
    for each in several:
        if not isinstance(each, torch.optim.Optimizer):
            raise TypeError(f"optimizer={each!r}: a torch.optim.Optimizer is needed")
    return several


def check_held(optimizers: Sequence[Optimizer], units: Sequence[TiedLayers]) -> None:
    """Refuse a model without whitened layers, and optimizers that were made for another model."""
    if not units:
        raise ValueError("model: it has no whitened layer; call prong.whiten first")
    held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    if not any(id(unit.weight) in held for unit in units):
        raise ValueError(
            "optimizer: it holds none of the model's whitened weights; "
            "make it from the parameters of this model"
        )

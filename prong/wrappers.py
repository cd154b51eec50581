"""Refusal of averaging modules, which would average V and d in coordinates that move."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from prong.layers.base import Whitened

_INSTEAD = (
    "averages of V and d mean nothing once Φ moves. Use prong.average(model), or fold at every "
    "update: averaged = AveragedModel(prong.fold(model)); "
    "averaged.update_parameters(prong.fold(model))"
)
_registered: list[Any] = []


def watch_averaging() -> None:
    """From now on, refuse whitened models inside modules that keep averages of parameters."""
    if not _registered:
        _registered.append(register_module_module_registration_hook(_refuse))


def _refuse(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    kind = type(parent)
    if child is None or not any(map(_averages, kind.__mro__)):
        return
    if any(isinstance(module, Whitened) for module in child.modules()):
        raise ValueError(f"{kind.__name__}: its model has whitened layers, and {_INSTEAD}")


def _averages(kind: type) -> bool:
    """AveragedModel of torch and what is made of it, ModelEmaV2 and V3 of timm, EMA of ema_pytorch.

    By their names: none of them is imported here.
    """
    if kind.__name__ == "EMA":
        return kind.__module__.startswith("ema_pytorch")
    return kind.__name__ == "AveragedModel" or kind.__name__.startswith("ModelEma")

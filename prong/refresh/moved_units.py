"""Which optimizer moves what of which unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from prong.linalg.dtypes import wide_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.optim import Optimizer

    from prong.refresh.tied_layers import TiedLayers

SMALLEST = 0.1


class Together:
    """Optimizers that share units, V in one and d in another, seen as one."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        """Remember them."""
        self.optimizers = list(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, one after another."""
        return [group for each in self.optimizers for group in each.param_groups]


class Watched:
    """The parameters of units that one optimizer holds.

    Attributes:
        units: the units of which the optimizer holds parameters.
        entries: for each parameter, its unit's place in `units` and its parameter group's index.
        deciding: for each of `units`, the group whose learning rate reduces the bound. It is the
            weight's group if the optimizer holds the weight.
        smallest: the lower limit of ‖V‖, `[units]`.
    """

    def __init__(self, optimizer: Optimizer | Together, units: Sequence[TiedLayers]) -> None:
        """Find the parameters of `units` in the optimizer's groups."""
        self.layout = layout_of(optimizer, units)
        owner = {id(p): index for index, unit in enumerate(units) for p in unit.parameters}
        places: dict[int, int] = {}
        self.entries: list[tuple[nn.Parameter, int, int]] = []
        self.deciding: list[int] = []
        for group, settings in enumerate(optimizer.param_groups):
            for parameter in settings["params"]:
                index = owner.get(id(parameter))
                if index is None:
                    continue
                if index not in places:
                    places[index] = len(places)
                    self.deciding.append(group)
                if parameter is units[index].weight:
                    self.deciding[places[index]] = group
                self.entries.append((parameter, places[index], group))
        self.units = [units[index] for index in places]
        self.place = {unit.name: place for place, unit in enumerate(self.units)}
        device = units[0].weight.device
        self.indices = torch.tensor(list(places), device=device, dtype=torch.long)
        outputs = [unit.layer.outputs for unit in self.units]
        self.smallest = (
            SMALLEST * torch.tensor(outputs, dtype=wide_dtype(device), device=device).sqrt()
        )


def layout_of(
    optimizer: Optimizer | Together, units: Sequence[TiedLayers]
) -> tuple[torch.device, list[list[int]]]:
    """Return values that change if parameters are added or exchanged, or the model is moved."""
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    return units[0].weight.device, groups


def members_of(
    optimizers: Sequence[Optimizer], units: Sequence[TiedLayers]
) -> list[Optimizer | Together]:
    """The optimizers, or all of them as one where some unit is moved by several."""
    holder = {
        id(p): index
        for index, optimizer in enumerate(optimizers)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for unit in units:
        if len({holder[id(p)] for p in unit.parameters if id(p) in holder}) > 1:
            return [Together(optimizers)]
    return list(optimizers)

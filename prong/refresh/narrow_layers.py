"""Narrow preconditioned layers, processed together: one product with P for all of one shape.

In a layer of 16 inputs the time depends on the number of operations, not on their size. Such a
layer computes y = W (h − c) + d with ordinary operations, and the backward pass leaves gᵀ(h − c),
the gradient of V times U⁻ᵀ, in `.grad`. Before the optimizer's step these gradients are stacked,
multiplied by the stacked P and written back. From then on `.grad` is the natural gradient, as in
every preconditioned layer.

The forward pass stores the inputs that count for the statistics, minus the old c. At the end of the
step they are added to the moments, for all layers of one shape together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from prong.layers.aside import Aside
from prong.statistics.moments import add_stacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from prong.layers.base import Whitened
    from prong.refresh.tied_layers import TiedLayers

WIDEST = 64
FEWEST = 4


class Pack:
    """Layers of one shape that belong to one optimizer."""

    def __init__(self, optimizer: Optimizer, units: Sequence[TiedLayers]) -> None:
        """Stack the P of the layers."""
        self.optimizer, self.units = optimizer, list(units)
        self.place = {unit.name: index for index, unit in enumerate(units)}
        self.preconditioner = torch.stack([_dense(unit.layer) for unit in units])
        self._written = (0, -1)
        self._memory: torch.UntypedStorage | None = None

    def update(self, unit: TiedLayers) -> None:
        """Copy a unit's new P into the stack."""
        self.preconditioner[self.place[unit.name]] = _dense(unit.layer)

    def work(self) -> tuple[Sequence[TiedLayers], Tensor] | None:
        """Make the gradients natural; return the units that have a gradient, and ‖g_V‖²."""
        found = [(u, u.weight.grad) for u in self.units if u.weight.grad is not None]
        if not found:
            return None
        having, gradients = [unit for unit, _ in found], [gradient for _, gradient in found]
        first = gradients[0]
        if self._written == (first.data_ptr(), first._version):
            return None  # These gradients were processed before and are already natural.
        preconditioner = self.preconditioner
        if len(having) < len(self.units):
            preconditioner = preconditioner[[self.place[unit.name] for unit in having]]
        stacked = torch.stack(gradients)
        natural = torch.bmm(stacked, preconditioner)
        torch._foreach_copy_(gradients, list(natural.unbind()))
        # Keep the memory, so that no other gradient can get this address.
        self._written, self._memory = (first.data_ptr(), first._version), first.untyped_storage()
        return having, (stacked * natural).sum((1, 2))


class SmallLayers:
    """Finds the narrow layers of a model and processes them together.

    It is used only in a single process, because several ranks could round the products differently.
    """

    def __init__(
        self, units: Sequence[TiedLayers], optimizers: Sequence[Optimizer], *, alone: bool
    ) -> None:
        """Store the units and optimizers; `arrange` chooses the layers."""
        self._units, self._optimizers, self._alone = list(units), list(optimizers), alone
        self.packs: list[Pack] = []

    def arrange(self) -> None:
        """Choose the layers that are processed together, and stack their P."""
        self.release()
        holder = {
            id(parameter): optimizer
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        found: dict[tuple[Any, ...], list[TiedLayers]] = {}
        for unit in self._units:
            optimizer = holder.get(id(unit.weight))
            if optimizer is not None and self._alone and _is_small(unit):
                weight = unit.weight
                key = (id(optimizer), tuple(weight.shape), weight.dtype, weight.device)
                found.setdefault(key, []).append(unit)
        if sum(len(members) for members in found.values()) < FEWEST:
            return
        for members in found.values():
            self.packs.append(Pack(holder[id(members[0].weight)], members))
            for unit in members:
                unit.layer.aside = Aside()

    def release(self) -> None:
        """Let every layer run by itself again."""
        self.settle()
        self.packs = []
        for unit in self._units:
            for layer in unit.layers:
                layer.aside = None

    def settle(self) -> None:
        """Add the stored inputs to the moments."""
        for pack in self.packs:
            waiting: dict[tuple[Any, ...], list[Whitened]] = {}
            for unit in pack.units:
                aside = unit.layer.aside
                if aside is None or not aside.inputs:
                    continue
                if unit.layer.moments is None:
                    aside.inputs.clear()
                else:
                    shapes = tuple((part.shape, number) for part, number in aside.inputs)
                    waiting.setdefault(shapes, []).append(unit.layer)
            for layers in waiting.values():
                _add(layers)

    def work(self, optimizer: Optimizer) -> list[tuple[Sequence[TiedLayers], Tensor]]:
        """Make the gradients of an optimizer's narrow layers natural; return units and ‖g_V‖²."""
        found = [pack.work() for pack in self.packs if pack.optimizer is optimizer]
        return [each for each in found if each is not None]

    def updated(self, units: Sequence[TiedLayers]) -> None:
        """Copy the P of units that were reparametrised."""
        for pack in self.packs:
            for unit in units:
                if unit.name in pack.place:
                    pack.update(unit)


def _is_small(unit: TiedLayers) -> bool:
    layer = unit.layer
    if len(unit.layers) > 1 or not layer.preconditioned or layer.weight.dim() != 2:
        return False
    if layer.TRANSPOSED:
        return False  # The products here are for weights `[out, in]`.
    wide = layer.weight.dtype == layer.mean.dtype
    return max(layer.weight.shape) <= WIDEST and layer.weight.requires_grad and wide


def _dense(layer: Whitened) -> Tensor:
    held = layer.preconditioner
    assert held is not None
    return held.whole()[0]


def _add(layers: Sequence[Whitened]) -> None:
    """Add the stored inputs of several layers, which all hold the same number of inputs."""
    shared = torch.stack([layer.mean[0] for layer in layers]).unsqueeze(1)
    moments = [held for layer in layers if (held := layer.moments) is not None]
    asides = [aside for layer in layers if (aside := layer.aside) is not None]
    for parts in zip(*(each.inputs for each in asides), strict=True):
        add_stacked(moments, torch.stack([part for part, _ in parts]) + shared, parts[0][1])
    for each in asides:
        each.inputs.clear()

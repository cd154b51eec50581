"""Transformation of the optimizer's state when the basis changes.

When Φ changes, V and d change, but the optimizer's state still refers to the old coordinates. The
paper resets the state ("reset"). State that is linear in the gradients can be transformed exactly
("gradient"). Momentum is a sum of gradients, a covector, so m_V′ = (m_V U⁻ᵀ − m_d (c′ − c)ᵀ) U′ᵀ
and m_d′ = m_d.

Second moments (of Adam, RMSprop) have no exact transformation. They are multiplied by the squared
entries of the change of basis, which is exact if the gradient's coordinates are uncorrelated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from prong.linalg.layout import from_grouped, to_grouped
from prong.linalg.projection import (
    Phi,
    from_canonical,
    gradient_from_canonical,
    gradient_to_canonical,
    to_canonical,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from prong.refresh.tied_layers import TiedLayers

LINEAR = ("momentum_buffer", "exp_avg", "grad_avg")
SQUARED = ("exp_avg_sq", "square_avg", "sum", "max_exp_avg_sq")


def carry_state(
    optimizers: Sequence[Optimizer], unit: TiedLayers, old: Phi, new: Phi, rule: str
) -> list[str]:
    """Transform the optimizers' state of one unit from the old Φ to the new, in place.

    Args:
        optimizers: the optimizers that may hold state of the unit's parameters.
        unit: the layers that share the Φ.
        old: Φ before the change.
        new: Φ after the change.
        rule: one of `MOMENTUM_RULES`.

    Returns:
        Notes about state that was reset because no rule can transform it.
    """
    for optimizer in optimizers:
        if rule == "reset":
            reset_state(optimizer, unit.parameters)
            continue
        names = _names(optimizer, unit)
        for key in sorted(names & set(LINEAR)):
            _carry_linear(optimizer, unit, old, new, key)
        for key in sorted(names & set(SQUARED)):
            _carry_squared(optimizer, unit, old, new, key)
    if rule == "reset":
        return []
    lost = _lost(optimizers, unit)
    for _, value in lost:
        value.zero_()
    return [note for note, _ in lost]


def lost_state(optimizers: Sequence[Optimizer], unit: TiedLayers, rule: str) -> list[str]:
    """Return the notes of `carry_state` on a rank that received the result."""
    return [] if rule == "reset" else [note for note, _ in _lost(optimizers, unit)]


def _names(optimizer: Optimizer, unit: TiedLayers) -> set[str]:
    """Return the names of an optimizer's state tensors for a unit."""
    states = [optimizer.state[p] for p in unit.parameters if p in optimizer.state]
    return {key for state in states for key, value in state.items() if torch.is_tensor(value)}


def _lost(optimizers: Sequence[Optimizer], unit: TiedLayers) -> list[tuple[str, Tensor]]:
    """Return the state tensors that no rule can transform, with a note about each."""
    return [
        (f"{unit.name}: optimizer state {key!r} was reset", value)
        for optimizer in optimizers
        for key in sorted(_names(optimizer, unit) - set(LINEAR) - set(SQUARED) - {"step"})
        for parameter in unit.parameters
        if torch.is_tensor(value := optimizer.state.get(parameter, {}).get(key))
        and value.shape == parameter.shape
    ]


def carried_tensors(optimizers: Sequence[Optimizer], unit: TiedLayers) -> list[Tensor]:
    """Return the state tensors that `carry_state` may have changed, in a fixed order."""
    return [
        value
        for optimizer in optimizers
        for parameter in unit.parameters
        if parameter in optimizer.state
        for _, value in sorted(optimizer.state[parameter].items())
        if torch.is_tensor(value) and value.shape == parameter.shape
    ]


def reset_state(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Reset the state of these parameters, as the paper does."""
    for parameter in parameters:
        if parameter in optimizer.state:
            _reset(optimizer, parameter)


def _reset(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    """Set the state to that of an optimizer before its first step."""
    state = optimizer.state[parameter]
    for key, value in list(state.items()):
        if key == "momentum_buffer" and isinstance(optimizer, torch.optim.SGD):
            # Delete it instead of writing zeros: with dampening, SGD treats its first step
            # differently, as does the paper's reset.
            del state[key]
        elif torch.is_tensor(value) and (value.shape == parameter.shape or key == "step"):
            value.zero_()
        elif key == "step":
            state[key] = 0


def _buffer(optimizer: Optimizer, parameter: nn.Parameter | None, key: str) -> Tensor | None:
    if parameter is None or parameter not in optimizer.state:
        return None
    value = optimizer.state[parameter].get(key)
    return value if torch.is_tensor(value) else None


def _carry_linear(optimizer: Optimizer, unit: TiedLayers, old: Phi, new: Phi, key: str) -> None:
    layer, dtype = unit.layer, new.whitener.dtype
    groups = layer.feature_groups
    weight = _buffer(optimizer, unit.weight, key)
    biases = [_buffer(optimizer, bias, key) for bias in unit.biases]
    grouped = to_grouped(
        (torch.zeros_like(unit.weight) if weight is None else weight).to(dtype),
        groups,
        layer.TRANSPOSED,
    )
    if layer.preconditioned:
        # The momentum of W is that of V times U.
        grouped, _ = from_canonical(grouped, None, old)
    outer = [None if b is None else b.to(dtype).reshape(groups, -1) for b in biases]
    present = [bias for bias in outer if bias is not None]
    # The gradient of a shared V contains −g_b cᵀ of every layer that uses it, so the momenta of
    # their biases are added.
    total = torch.stack(present).sum(0) if present else None
    middle = gradient_to_canonical(grouped, total, old)
    moved, _ = gradient_from_canonical(*middle, new)
    nothing = torch.zeros_like(grouped[..., :0, :])
    for buffer, bias in zip(biases, outer, strict=True):
        if buffer is not None and bias is not None and new.output is not None:
            _, plain = gradient_to_canonical(nothing, bias, old)
            _, carried = gradient_from_canonical(nothing, plain, new)
            assert carried is not None
            buffer.copy_(carried.reshape(-1))
    if weight is not None:
        if layer.preconditioned:
            moved, _ = to_canonical(moved, None, new)
        weight.copy_(from_grouped(moved, weight.shape, layer.TRANSPOSED))


def _carry_squared(optimizer: Optimizer, unit: TiedLayers, old: Phi, new: Phi, key: str) -> None:
    layer, dtype = unit.layer, new.whitener.dtype
    groups = layer.feature_groups
    change = old.divided(new.whitener.unsqueeze(2)).squeeze(2).square().transpose(1, 2)
    outer = None
    inverse = old.left_inverse()
    if new.output is not None:
        outer = (new.output if inverse is None else new.output @ inverse).square()
    weight = _buffer(optimizer, unit.weight, key)
    if weight is not None:
        grouped = to_grouped(weight.to(dtype), groups, layer.TRANSPOSED)
        carried = (grouped.flatten(1, 2) @ change).reshape(grouped.shape)
        if outer is not None:
            carried = (outer @ carried.flatten(2)).reshape(grouped.shape)
        weight.copy_(from_grouped(carried, weight.shape, layer.TRANSPOSED))
    for bias in unit.biases:
        value = _buffer(optimizer, bias, key)
        if value is not None and outer is not None:
            value.copy_((outer @ value.to(dtype).reshape(groups, -1, 1)).reshape(-1))

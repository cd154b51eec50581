"""Optimizer state across a change of basis.

When Φ changes, V and d change with it, and whatever the optimizer remembers about them is written
in coordinates that no longer exist. The paper starts over ("reset"). Otherwise each tensor follows
by what it means (`prong.refresh.state_kinds`):

- covectors, such as momentum: m_V′ = (m_V U⁻ᵀ − m_d (c′ − c)ᵀ) U′ᵀ and m_d′ = m_d;
- vectors and points, such as averaged parameters: as V and d themselves;
- second moments: by the squared entries of the change of basis, which is exact if the coordinates
  of the gradient are uncorrelated. Sizes are carried as roots of squares.

State with an unknown meaning is dropped, all of it for that parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prong.refresh.state_kinds import Kind, has_history, kind_of, kinds_of
from prong.refresh.state_transport import Pair, carry

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from prong.linalg.projection import Phi
    from prong.refresh.tied_layers import TiedLayers

Path = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Held:
    """One tensor of an optimizer's state.

    Attributes:
        optimizer: whose it is.
        parameter: what it is remembered of; the tensor has its shape.
        path: the keys that lead to it.
        kind: what it means.
        tensor: the numbers, changed in place.
    """

    optimizer: Optimizer
    parameter: nn.Parameter
    path: Path
    kind: Kind
    tensor: Tensor


def _tensors(state: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """All tensors of a nested state, in a fixed order."""
    if torch.is_tensor(state):
        yield path, state
    elif isinstance(state, dict):
        for key in sorted(state, key=str):
            yield from _tensors(state[key], (*path, key))
    elif isinstance(state, (list, tuple)):
        for index, value in enumerate(state):
            yield from _tensors(value, (*path, index))
    elif state is not None and not isinstance(state, (int, float, str, bool, set, torch.Size)):
        yield path, torch.empty(2)  # an object that may hold anything: unknown


def held_state(optimizer: Optimizer, parameter: nn.Parameter) -> tuple[list[Held], str]:
    """What an optimizer remembers of a parameter that can follow a change of basis.

    Returns:
        The tensors, in a fixed order, and the name of the first whose meaning is unknown; with such
        a name there are no tensors, because all of the state is dropped.
    """
    held: list[Held] = []
    kinds = kinds_of(optimizer) or {}
    for path, tensor in _tensors(optimizer.state.get(parameter, {})):
        name = next((key for key in path if isinstance(key, str)), "")
        kind = kind_of(kinds, name)
        if kind is None and tensor.numel() > 1:
            return [], name or type(optimizer).__name__
        if kind is None or kind is Kind.NUMBER:
            continue
        if tensor.shape != parameter.shape:
            return [], name
        held.append(Held(optimizer, parameter, path, kind, tensor))
    return held, ""


def lost_state(optimizers: Sequence[Optimizer], unit: TiedLayers) -> list[str]:
    """Notes about state that cannot follow a change of a unit's basis; empty if all can."""
    notes = []
    for optimizer in optimizers:
        owner = type(optimizer).__name__
        if has_history(optimizer):
            if optimizer.state and _moves(optimizer, unit):
                notes.append(f"{owner}: the history was dropped, it is in the old coordinates")
            continue
        for parameter in unit.parameters:
            if parameter in optimizer.state:
                lost = held_state(optimizer, parameter)[1]
                if lost:
                    notes.append(
                        f"{owner}: the state of {unit.name} was dropped, because what {lost!r} "
                        "means in other coordinates is not known"
                    )
    return list(dict.fromkeys(notes))


def drop_lost_state(optimizers: Sequence[Optimizer], unit: TiedLayers) -> list[str]:
    """Drop what `lost_state` tells of, on every rank alike; its notes."""
    notes = lost_state(optimizers, unit)
    for optimizer in optimizers:
        if has_history(optimizer):
            if _moves(optimizer, unit):
                optimizer.state.clear()
            continue
        for parameter in unit.parameters:
            if parameter in optimizer.state and held_state(optimizer, parameter)[1]:
                start_over(optimizer, parameter)
    return notes


def _moves(optimizer: Optimizer, unit: TiedLayers) -> bool:
    wanted = {id(parameter) for parameter in unit.parameters}
    return any(id(p) in wanted for group in optimizer.param_groups for p in group["params"])


def carried_tensors(optimizers: Sequence[Optimizer], unit: TiedLayers) -> list[Tensor]:
    """The state tensors that `carry_state` may have written, in a fixed order."""
    return [held.tensor for held in _all_held(optimizers, unit)]


def _all_held(optimizers: Sequence[Optimizer], unit: TiedLayers) -> list[Held]:
    return [
        held
        for optimizer in optimizers
        if not has_history(optimizer)
        for parameter in unit.parameters
        if parameter in optimizer.state
        for held in held_state(optimizer, parameter)[0]
    ]


def reset_state(optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter]) -> None:
    """Start over for these parameters, as the paper does: as a new optimizer would."""
    for optimizer in optimizers:
        if has_history(optimizer):
            optimizer.state.clear()
            continue
        for parameter in parameters:
            if parameter in optimizer.state:
                start_over(optimizer, parameter)


def start_over(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    """Give a parameter the state that it has in an optimizer that was just made."""
    state = optimizer.state[parameter]
    group = next(
        group for group in optimizer.param_groups if any(p is parameter for p in group["params"])
    )
    if "slow_params" in state:
        # Lookahead makes its state at once, of the parameters as they are.
        state["slow_params"].copy_(parameter.detach())
        state.pop("backup_params", None)
        if "slow_momentum" in state:
            state["slow_momentum"].zero_()
    elif "initial_accumulator_value" in group and "sum" in state:
        # So does Adagrad.
        state["sum"].fill_(group["initial_accumulator_value"])
        state["step"] = torch.zeros_like(state["step"]) if torch.is_tensor(state["step"]) else 0
    else:
        del optimizer.state[parameter]


def carry_state(
    optimizers: Sequence[Optimizer], unit: TiedLayers, old: Phi, new: Phi, rule: str
) -> None:
    """Let the optimizers' state of one unit follow from the old Φ to the new, in place.

    The unit's parameters are in the new Φ already. State without a known meaning stays as it is:
    see `drop_lost_state`.

    Args:
        optimizers: those that may hold state of the unit's parameters.
        unit: the layers that share the Φ.
        old: Φ that the state was written in.
        new: Φ that it is to be written in.
        rule: one of `MOMENTUM_RULES`.
    """
    if rule == "reset":
        reset_state(optimizers, unit.parameters)
        return
    for pair in pairs_of(optimizers, unit):
        carry(pair, unit, old, new)


def waiting_gradients(unit: TiedLayers, spent: set[int]) -> list[Tensor | None]:
    """Gradients of V and each d that no step has used yet; empty if there is none.

    Args:
        unit: the layers that share the Φ.
        spent: by `id`, parameters whose gradient is used up.
    """
    found = [None if id(p) in spent else p.grad for p in unit.parameters]
    return [] if all(gradient is None for gradient in found) else found


def carry_gradients(unit: TiedLayers, old: Phi, new: Phi, spent: set[int]) -> None:
    """Let gradients that no step has used yet follow the basis, as covectors."""
    found = waiting_gradients(unit, spent)
    if found:
        # P meets the gradients of narrow layers only at the step.
        raw = unit.layer.aside is not None
        biases = tuple(found[1:])
        carry(Pair(Kind.COVECTOR, found[0], biases, biases), unit, old, new, raw=raw)


def pairs_of(optimizers: Sequence[Optimizer], unit: TiedLayers) -> list[Pair]:
    """State of V and d that belongs together, gathered over all optimizers."""
    held = _all_held(optimizers, unit)
    keys = list(dict.fromkeys((id(h.optimizer), h.path) for h in held))
    pairs = []
    for owner, path in keys:
        own = {id(h.parameter): h for h in held if id(h.optimizer) == owner and h.path == path}
        first = next(iter(own.values()))
        weight = own.get(id(unit.weight))
        biases = [own.get(id(bias)) for bias in unit.biases]
        partners: list[Tensor | None] = []
        for bias, mine in zip(unit.biases, biases, strict=True):
            partner = mine
            if mine is None and weight is not None:
                partner = next(
                    (h for h in held if h.parameter is bias and h.kind is first.kind), None
                )
            if partner is None or weight is None:
                partners.append(None)
            else:
                partners.append(partner.tensor.detach() * (_gain(weight) / _gain(partner)))
        pairs.append(
            Pair(
                first.kind,
                None if weight is None else weight.tensor,
                tuple(None if h is None else h.tensor for h in biases),
                tuple(partners),
            )
        )
    return pairs


def _gain(held: Held) -> float:
    """How large a momentum is, of gradients that are all 1: SGD sums them up, others average."""
    if held.path != ("momentum_buffer",) or not isinstance(held.optimizer, torch.optim.SGD):
        return 1.0
    for group in held.optimizer.param_groups:
        if any(p is held.parameter for p in group["params"]):
            return (1 - float(group["dampening"])) / (1 - float(group["momentum"]))
    return 1.0

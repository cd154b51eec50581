"""How a pair of tensors of V and d is written in another Φ; see `prong.refresh.optimizer_state`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prong.linalg.layout import from_grouped, to_grouped
from prong.linalg.projection import (
    Phi,
    from_canonical,
    gradient_from_canonical,
    gradient_to_canonical,
    to_canonical,
)
from prong.refresh.state_kinds import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from prong.refresh.tied_layers import TiedLayers

_Moved = tuple["Tensor | None", "list[Tensor | None]"]


@dataclass(frozen=True, eq=False)
class Pair:
    """What is remembered of V and of the biases d of one unit, under one name.

    Attributes:
        kind: what it means.
        weight: of V; None if nothing is.
        biases: of each d, to be carried; None where nothing is.
        partners: of each d, to carry V's with, in V's scale: that of another optimizer, where d is
            moved by one.
    """

    kind: Kind
    weight: Tensor | None
    biases: tuple[Tensor | None, ...]
    partners: tuple[Tensor | None, ...]


def carry(pair: Pair, unit: TiedLayers, old: Phi, new: Phi, *, raw: bool = False) -> None:
    """Write one pair in the new Φ; `raw` for gradients of W that P has not met yet."""
    layer, dtype = unit.layer, new.whitener.dtype
    groups, transposed = layer.feature_groups, layer.TRANSPOSED
    weight = None
    if pair.weight is not None:
        weight = to_grouped(pair.weight.to(dtype), groups, transposed)

    def outer(values: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if v is None else v.to(dtype).reshape(groups, -1) for v in values]

    biases, partners = outer(pair.biases), outer(pair.partners)
    if pair.kind is Kind.COVECTOR:
        moved = _covector(unit, weight, biases, partners, old, new, raw)
    elif pair.kind in (Kind.VECTOR, Kind.POINT):
        moved = _vector(unit, weight, biases, old, new, point=pair.kind is Kind.POINT)
    else:
        rooted = pair.kind in (Kind.MAGNITUDE, Kind.UPDATE_SIZE)
        if rooted:
            weight = None if weight is None else weight.square()
            biases = [None if b is None else b.square() for b in biases]
            partners = [None if b is None else b.square() for b in partners]
        gradient = pair.kind in (Kind.SECOND_MOMENT, Kind.MAGNITUDE)
        square = _gradient_square if gradient else _update_square
        moved = square(weight, biases, partners, old, new)
        if rooted:
            moved = (
                None if moved[0] is None else moved[0].sqrt(),
                [None if b is None else b.sqrt() for b in moved[1]],
            )
    if pair.weight is not None and moved[0] is not None:
        pair.weight.copy_(from_grouped(moved[0], pair.weight.shape, transposed))
    for tensor, value in zip(pair.biases, moved[1], strict=True):
        if tensor is not None and value is not None:
            tensor.copy_(value.reshape(-1))


def _covector(
    unit: TiedLayers,
    weight: Tensor | None,
    biases: Sequence[Tensor | None],
    partners: Sequence[Tensor | None],
    old: Phi,
    new: Phi,
    raw: bool,
) -> _Moved:
    """m_V′ = R′R⁻¹(m_V U⁻ᵀ − m_d (c′ − c)ᵀ) U′ᵀ, m_d′ = R′R⁻¹ m_d."""
    layer = unit.layer
    moved = None
    if weight is not None:
        # The shared V collects −g_b cᵀ from every layer that uses it, so their biases' momenta add
        # up.
        present = [bias for bias in partners if bias is not None]
        total = torch.stack(present).sum(0) if present else None
        if raw:
            shift = new.mean - old.mean
            moved = weight
            if total is not None and unit.centred:
                moved = weight - total[:, :, None, None] * shift[:, None, None, :]
        else:
            if layer.preconditioned:
                # W's momentum is V's times U.
                weight, _ = from_canonical(weight, None, old)
            moved, _ = gradient_from_canonical(*gradient_to_canonical(weight, total, old), new)
            if layer.preconditioned:
                moved, _ = to_canonical(moved, None, new)
    if new.output is None:
        return moved, list(biases)
    inverse = old.left_inverse()
    change = new.output if inverse is None else new.output @ inverse
    return moved, [None if b is None else (change @ b.unsqueeze(-1)).squeeze(-1) for b in biases]


def _vector(
    unit: TiedLayers,
    weight: Tensor | None,
    biases: Sequence[Tensor | None],
    old: Phi,
    new: Phi,
    *,
    point: bool,
) -> _Moved:
    """As V and d: line 7 of Algorithm 1 in the old Φ, line 10 in the new."""
    canonical = None if weight is None else to_canonical(weight, None, old)[0]
    if canonical is None and point:
        # An average of d alone goes with the present W.
        canonical = to_canonical(unit.layer.grouped_weight(new.whitener.dtype), None, new)[0]
    nothing = None
    carried: list[Tensor | None] = []
    for bias in biases:
        if bias is None:
            carried.append(None)
            continue
        if canonical is None:
            nothing = new.whitener.new_zeros(len(bias), bias.shape[1], 1, new.whitener.shape[1])
        around = canonical if canonical is not None else nothing
        assert around is not None
        left = old.output
        plain = bias if left is None else (left.transpose(1, 2) @ bias.unsqueeze(-1)).squeeze(-1)
        plain = plain - (around.sum(2) @ old.mean.unsqueeze(-1)).squeeze(-1)
        carried.append(from_canonical(around, plain, new)[1])
    if weight is None or canonical is None:
        return None, carried
    return from_canonical(canonical, None, new)[0], carried


def _gradient_square(
    weight: Tensor | None,
    biases: Sequence[Tensor | None],
    partners: Sequence[Tensor | None],
    old: Phi,
    new: Phi,
) -> _Moved:
    """E m_V′² of covectors whose coordinates are uncorrelated."""
    outer = None
    if new.output is not None:
        inverse = old.left_inverse()
        outer = (new.output if inverse is None else new.output @ inverse).square()
    moved = None
    if weight is not None:
        change = old.divided(new.whitener.unsqueeze(2)).squeeze(2).square().transpose(1, 2)
        moved = (weight.flatten(1, 2) @ change).reshape(weight.shape)
        present = [bias for bias in partners if bias is not None]
        if present:
            shift = new.whitener @ (new.mean - old.mean).unsqueeze(-1)
            total = torch.stack(present).sum(0)
            moved = moved + total[:, :, None, None] * shift.square()[:, None, None, :, 0]
        if outer is not None:
            moved = (outer @ moved.flatten(2)).reshape(weight.shape)
    if outer is None:
        return moved, list(biases)
    return moved, [None if b is None else (outer @ b.unsqueeze(-1)).squeeze(-1) for b in biases]


def _update_square(
    weight: Tensor | None,
    biases: Sequence[Tensor | None],
    partners: Sequence[Tensor | None],
    old: Phi,
    new: Phi,
) -> _Moved:
    """E ΔV′² of updates whose coordinates are uncorrelated: ΔV′ = R′⁻ᵀRᵀ ΔV U U′⁻¹."""
    outer = None
    if new.output is not None:
        inverse = new.left_inverse()
        assert inverse is not None
        change = inverse.transpose(1, 2)
        outer = (change if old.output is None else change @ old.output.transpose(1, 2)).square()

    def across(values: Tensor) -> Tensor:
        return values if outer is None else (outer @ values.flatten(2)).reshape(values.shape)

    moved, shifted = None, None
    if weight is not None:
        change = new.divided(old.whitener.unsqueeze(2)).squeeze(2).square()
        moved = across((weight.flatten(1, 2) @ change).reshape(weight.shape))
        shift = old.whitener @ (new.mean - old.mean).unsqueeze(-1)
        shifted = (weight.sum(2) @ shift.square()).squeeze(-1)
    carried: list[Tensor | None] = []
    for bias in biases:
        if bias is not None and shifted is not None:
            bias = bias + shifted
        carried.append(None if bias is None else across(bias.unsqueeze(-1)).squeeze(-1))
    return moved, carried

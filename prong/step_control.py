"""Step control: no layer's pre-activations may change by more than a share ρ in one gradient.

Whitened inputs have unit variance, so ‖V_j‖² is the variance of pre-activation j, and η²(‖g_Vj‖² +
g_dj²) the mean squared change that one gradient makes in it. Each unit's gradient is scaled by
itself, before momentum, so that

    η ‖(g_V, g_d)‖ ≤ ρ ‖V‖.

The bound knows nothing of the loss's scale or reduction, of width or depth. Two things lower ρ: it
falls with the learning rate, in proportion to the highest rate so far, and as 1/√(1 + t/100) with
the steps t made, because a bound that binds at every step leaves noise of a constant size.

‖V‖ is that of the last reparametrisation, the same in every mode: in a canonical layer ‖V‖² =
tr(W P⁻¹ Wᵀ). Where it is less than 0.1 for each pre-activation (a head that starts at zero), 0.1
takes its place: such a layer must be able to leave zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from prong.layout import weight_to_canonical
from prong.natural import LastPass
from prong.precision import Precision, weight_square

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from prong.ranks import Ranks
    from prong.units import Unit

COOLING = 100.0
SMALLEST = 0.1


class StepControl:
    """Scales the gradients of whitened units that an optimizer is about to use.

    By then they have been summed over micro-batches and ranks, and unscaled. On a GPU nothing is
    read back.

    Attributes:
        limit: ρ, a share; None lets every step pass.
        steps: t, the optimizer steps made.
        scales: by unit name, what the gradients were last multiplied by, scalar tensors.
    """

    def __init__(
        self, units: Iterable[Unit], limit: float | None, optimizers: Sequence[Optimizer], ranks: Ranks
    ) -> None:
        """Watch the parameters of `units`."""
        self.limit, self.ranks, self.optimizers = limit, ranks, list(optimizers)
        self.steps = 0
        self.scales: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self._units = list(units)
        self._owner = {id(p): unit for unit in self._units for p in unit.parameters}
        self._highest: list[list[float]] = [[0.0] * len(o.param_groups) for o in self.optimizers]
        self._inverses: dict[str, tuple[Tensor, int, Tensor]] = {}
        for unit in self._units:
            for layer in unit.layers:
                alone = limit is not None and ranks.size == 1
                layer.last_pass = LastPass() if alone else None

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer) -> None:
        """Scale the gradients that `optimizer` is about to use."""
        if self.limit is None:
            return
        self._measure_weights()
        place = self.optimizers.index(optimizer)
        shares, held = self._held(optimizer, place)
        if not shares:
            return
        units = [unit for unit in self._units if unit.name in shares]
        squares = self._squares(units, held)
        lengths = self.ranks.sum_(squares).sqrt()
        # Fused optimizers unscale inside their kernel: here the gradients are still times the loss
        # scale.
        loss_scale = getattr(optimizer, "grad_scale", None)
        if loss_scale is not None:
            lengths = lengths / loss_scale.to(lengths)
        allowed = torch.stack([self._allowed(unit, shares[unit.name]) for unit in units])
        allowed = allowed.to(lengths)
        scales = torch.where(lengths > allowed, allowed / lengths, 1)
        self.scales.update(zip((unit.name for unit in units), scales, strict=True))
        # Reading is free on a CPU, and spares the gradients that stay.
        known = scales.tolist() if scales.device.type == "cpu" else [None] * len(units)
        for unit, scale, value in zip(units, scales, known, strict=True):
            if value != 1:
                for parameter, _ in held[unit.name]:
                    assert parameter.grad is not None
                    parameter.grad.mul_(scale)

    def measured(self, unit: Unit, norm: Tensor) -> None:
        """Take over ‖V‖, a scalar, of a unit that was reparametrised."""
        self.norms[unit.name] = norm

    def forget(self) -> None:
        """Measure every ‖V‖ again before the next step."""
        self.norms.clear()

    def state(self) -> dict[str, Any]:
        """Plain numbers that a resumed run needs, besides `norms`."""
        return {"highest_rates": [list(rates) for rates in self._highest]}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave; a shape that does not fit is left out."""
        given = state.get("highest_rates", [])
        if [len(rates) for rates in given] == [len(rates) for rates in self._highest]:
            self._highest = [[float(rate) for rate in rates] for rates in given]

    def tensors(self) -> list[Tensor]:
        """What is held for gradients that did not come from a single backward pass."""
        return [inverse for _, _, inverse in self._inverses.values()]

    def _held(
        self, optimizer: Optimizer, place: int
    ) -> tuple[dict[str, float], dict[str, list[tuple[nn.Parameter, float]]]]:
        """By unit name: ρ's share of the limit; parameters with gradients, and their rates."""
        shares: dict[str, float] = {}
        held: dict[str, list[tuple[nn.Parameter, float]]] = {}
        highest = self._highest[place]
        highest += [0.0] * (len(optimizer.param_groups) - len(highest))
        for index, group in enumerate(optimizer.param_groups):
            rate = float(group["lr"])
            highest[index] = max(highest[index], rate)
            for parameter in group["params"]:
                unit = self._owner.get(id(parameter))
                if unit is None:
                    continue
                if unit.name not in shares or parameter is unit.weight:
                    shares[unit.name] = rate / highest[index] if highest[index] > 0 else 1.0
                found = held.setdefault(unit.name, [])
                if parameter.grad is not None:
                    found.append((parameter, rate))
        return shares, held

    def _allowed(self, unit: Unit, share: float) -> Tensor:
        assert self.limit is not None
        limit = self.limit * share / (1 + self.steps / COOLING) ** 0.5
        outputs = unit.layer.canonical_outputs
        return self.norms[unit.name].clamp(min=SMALLEST * outputs**0.5) * limit

    def _squares(
        self, units: Sequence[Unit], held: dict[str, list[tuple[nn.Parameter, float]]]
    ) -> Tensor:
        """η²‖(g_V, g_d)‖² of each unit, this rank's part of it, `[units]`."""
        gradients: list[Tensor] = []
        places: list[int] = []
        rates: list[float] = []
        parts: list[tuple[int, float, Tensor]] = []
        device = units[0].weight.device
        dtype = torch.float32
        for place, unit in enumerate(units):
            for parameter, rate in held[unit.name]:
                gradient = parameter.grad
                assert gradient is not None
                dtype = torch.promote_types(dtype, gradient.dtype)
                if unit.layer.canonical and parameter is unit.weight:
                    parts.append((place, rate, self._natural_square(unit, gradient)))
                elif self.ranks.index == 0:
                    gradients.append(gradient)
                    places.append(place)
                    rates.append(rate)
        squares = torch.zeros(len(units), dtype=dtype, device=device)
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients, 2, dtype))
            places_ = torch.tensor(places, device=device)
            factors = torch.tensor(rates, dtype=dtype, device=device)
            squares.index_add_(0, places_, (norms * factors).square())
        if parts:
            found = torch.stack([part.to(dtype) for _, _, part in parts])
            factors = torch.tensor([rate**2 for _, rate, _ in parts], dtype=dtype, device=device)
            places_ = torch.tensor([place for place, _, _ in parts], device=device)
            squares.index_add_(0, places_, found * factors)
        return squares

    def _natural_square(self, unit: Unit, natural: Tensor) -> Tensor:
        """‖g_V‖² = ⟨n P⁻¹, n⟩ of a canonical unit; on several ranks, of this rank's rows."""
        taken = [each.last_pass.take(natural) for each in unit.layers if each.last_pass is not None]
        if len(taken) == 1 and taken[0] is not None:
            return taken[0]
        layer = unit.layer
        assert layer.precision_matrix is not None
        dtype = torch.promote_types(natural.dtype, layer.precision_matrix.dtype)
        groups = layer.feature_groups
        rows = weight_to_canonical(natural.to(dtype), groups, layer.TRANSPOSED).flatten(1, 2)
        size, index = self.ranks.size, self.ranks.index
        if size > 1:
            # The ranks hold the same gradients: each takes its share of the work.
            rows = rows[:, index * rows.shape[1] // size : (index + 1) * rows.shape[1] // size]
        return weight_square(rows, Precision.of(layer, dtype), self._inverse(unit, dtype))

    def _inverse(self, unit: Unit, dtype: torch.dtype) -> Tensor | None:
        """P⁻¹ of a whole P, computed once per reparametrisation."""
        layer = unit.layer
        precision = layer.precision_matrix
        assert precision is not None
        if layer.precision_damping is not None:
            self._inverses.pop(unit.name, None)
            return None
        held = self._inverses.get(unit.name)
        # By identity: memory of a tensor that was let go may hold another one.
        if held is None or held[0] is not precision or held[1] != precision._version:
            inverse = torch.linalg.inv(precision.to(dtype))
            held = self._inverses[unit.name] = (precision, precision._version, inverse)
        return held[2].to(dtype)

    def _measure_weights(self) -> None:
        """‖V‖ of units that have not been reparametrised since there was a weight to measure."""
        missing = [unit for unit in self._units if unit.name not in self.norms]
        if not missing:
            return
        norms = torch.stack([weight_norm(unit) for unit in missing])
        # Two machines may round differently, and ranks must stay equal in every bit.
        self.ranks.broadcast_([norms])
        self.norms.update(zip((unit.name for unit in missing), norms, strict=True))


def weight_norm(unit: Unit, inverse: Tensor | None = None) -> Tensor:
    """‖V‖ of a unit, a scalar in float64 (float32 on Apple's GPUs).

    Args:
        unit: the layers that share the weight.
        inverse: P⁻¹ of a canonical unit with a whole P, if it is at hand.
    """
    layer = unit.layer
    dtype = layer.wide_dtype
    if layer.precision_matrix is None:
        norm: Tensor = torch.linalg.vector_norm(unit.weight.detach(), dtype=dtype)
        return norm
    # Φ's own precision is enough: this is a bound's reference.
    narrow = layer.precision_matrix.dtype if inverse is None else inverse.dtype
    rows = layer.canonical_weight(narrow).detach().flatten(1, 2)
    return weight_square(rows, Precision.of(layer, narrow), inverse).to(dtype).sqrt()

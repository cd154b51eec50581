"""Step control: a bound on the change that one gradient makes in a layer's pre-activations.

Whitened inputs have unit variance. Therefore ‖V_j‖² is the variance of pre-activation j, and one
gradient changes it by η²(‖g_Vj‖² + g_dj²) in mean square. The gradient of each unit is scaled
separately, before momentum, so that

    η ‖(g_V, g_d)‖ ≤ ρ ‖V‖.

Let r be the step's length divided by this bound. A step with r < 1 is scaled to r^0.3 of the bound.
As the loss falls, gradients shrink as fast as the curvature with respect to a layer's outputs,
which the whitening of inputs does not correct. With unscaled gradients (r¹) training would slow
down long before the end. With steps of the full length (r⁰) it would not converge on batches that
differ.

The bound does not depend on the loss's scale or reduction, or on width or depth. Two factors reduce
ρ. The first is the learning rate divided by the highest rate so far. The second is 1/√(1 + t/50)
after t steps, because a constant bound that limits every step leaves noise of a constant size.

A gradient is scaled for the rate of its time, but SGD multiplies its momentum by the rates to come.
So when a rate rises above its highest so far, the momentum is divided by the rise and velocity is
kept. Otherwise gradients that a warm-up scaled for a tiny rate would be applied at the full one.

‖V‖ is measured at the last reparametrisation and is the same in every mode. In a preconditioned
layer ‖V‖² = tr(W P⁻¹ Wᵀ). For each pre-activation it counts as at least 0.1, so that a layer that
starts at zero can leave zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from prong.layers.autograd import GradientFactors
from prong.linalg.dtypes import wide_dtype
from prong.linalg.layout import to_grouped
from prong.linalg.preconditioner import Dense, weight_square
from prong.refresh.moved_units import Together, Watched, layout_of, members_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from prong.distributed.ranks import Ranks
    from prong.refresh.tied_layers import TiedLayers

COOLING = 50.0
POWER = 0.3


class StepControl:
    """Scales the gradients of units just before an optimizer's step.

    At that time gradients are summed over micro-batches and ranks, and unscaled. No number is read
    back from a GPU.

    Attributes:
        limit: ρ; None for no step control.
        steps: t, the number of optimizer steps so far.
        scales: by unit name, the last factors of the gradients, scalar tensors.
    """

    def __init__(
        self,
        units: Sequence[TiedLayers],
        limit: float | None,
        optimizers: Sequence[Optimizer],
        ranks: Ranks,
    ) -> None:
        """Find the parameters of `units` in `optimizers`."""
        self.limit, self.ranks, self.optimizers = limit, ranks, list(optimizers)
        self.steps = 0
        self.scales: dict[str, Tensor] = {}
        self._units = list(units)
        self._members = members_of(self.optimizers, self._units)
        self._watched = [Watched(member, self._units) for member in self._members]
        self._highest: list[list[float]] = [[0.0] * len(o.param_groups) for o in self._members]
        self._scaled: dict[int, tuple[Tensor, int]] = {}
        self._inverses: dict[str, tuple[Tensor, int, Tensor]] = {}
        device = self._units[0].weight.device
        self._norms = torch.zeros(len(self._units), dtype=wide_dtype(device), device=device)
        self._index = {unit.name: index for index, unit in enumerate(self._units)}
        self._missing = set(self._index)
        for unit in self._units:
            for layer in unit.layers:
                alone = limit is not None and ranks.size == 1
                layer.last_pass = GradientFactors() if alone else None

    @property
    def norms(self) -> dict[str, Tensor]:
        """‖V‖ by unit name, scalar tensors; only for units where it is known."""
        return {n: self._norms[i] for n, i in self._index.items() if n not in self._missing}

    @torch.no_grad()
    def __call__(
        self, optimizer: Optimizer, known: Sequence[tuple[Sequence[TiedLayers], Tensor]] = ()
    ) -> None:
        """Scale the gradients that `optimizer` is about to use.

        Args:
            optimizer: one of the optimizers.
            known: units whose ‖g_V‖² is already known, with these squares, `[units]`.
        """
        if self.limit is None:
            return
        self._measure_weights()
        if not self.waiting(optimizer):
            return
        which = 0 if len(self._members) == 1 else self.optimizers.index(optimizer)
        member = self._members[which]
        watched = self._watched[which]
        if watched.layout != layout_of(member, self._units):
            watched = self._watched[which] = Watched(member, self._units)
        if not watched.units:
            return
        rates = [float(group["lr"]) for group in member.param_groups]
        self._keep_velocity(member, watched, which, rates)
        squares = self._squares(watched, rates, known)
        lengths = self.ranks.sum_(squares).sqrt()
        # Fused optimizers unscale in their kernel, so here the gradients still contain the loss
        # scale.
        loss_scale = getattr(optimizer, "grad_scale", None)
        if loss_scale is not None:
            lengths = lengths / loss_scale.to(lengths)
        allowed = self._allowed(watched, which, rates).to(lengths)
        inverse = allowed / lengths
        below = torch.where(lengths > 0, inverse ** (1 - POWER), 1)
        scales = torch.where(lengths > allowed, inverse, below)
        self.scales = {**self.scales, **dict(zip(watched.place, scales.unbind(), strict=True))}
        together = isinstance(member, Together)
        held = [
            (p.grad, place)
            for p, place, _ in watched.entries
            if p.grad is not None and not (together and self._was_scaled(p))
        ]
        if scales.device.type == "cpu":
            # On a CPU, reading costs nothing, and one call scales all gradients.
            values = scales.tolist()
            if held:
                factors = [values[place] for _, place in held]
                torch._foreach_mul_([gradient for gradient, _ in held], factors)
        else:
            for gradient, place in held:
                gradient.mul_(scales[place])
        if together:
            self._scaled = {
                id(p): (p.grad, p.grad._version)
                for p, _, _ in watched.entries
                if p.grad is not None
            }

    def waiting(self, optimizer: Optimizer) -> list[Optimizer]:
        """The optimizers whose gradients are to be scaled before a step of this one.

        That is itself, or where optimizers share units, all that have gradients which were not
        scaled yet; none if its own were.
        """
        together = self._members[0]
        if not isinstance(together, Together):
            return [optimizer]
        found = [
            each
            for each in together.optimizers
            if any(
                p.grad is not None and not self._was_scaled(p)
                for group in each.param_groups
                for p in group["params"]
            )
        ]
        return found if any(each is optimizer for each in found) else []

    def _was_scaled(self, parameter: nn.Parameter) -> bool:
        held = self._scaled.get(id(parameter))
        gradient = parameter.grad
        if held is None or gradient is None:
            return False
        return held[0] is gradient and held[1] == gradient._version

    def measured(self, unit: TiedLayers, norm: Tensor) -> None:
        """Store ‖V‖, a scalar, of a unit that was reparametrised."""
        self._norms[self._index[unit.name]] = norm
        self._missing.discard(unit.name)

    def forget(self) -> None:
        """Discard every ‖V‖; they are measured again before the next step."""
        self._missing = set(self._index)

    def forget_unit(self, unit: TiedLayers) -> None:
        """Measure ‖V‖ of one unit again before the next step."""
        self._missing.add(unit.name)

    def state(self) -> dict[str, Any]:
        """Return the plain numbers that a resumed run needs besides `norms`."""
        return {"highest_rates": [list(rates) for rates in self._highest]}

    def load(self, state: dict[str, Any]) -> None:
        """Load a result of `state`; values with another shape are ignored."""
        given = state.get("highest_rates", [])
        if [len(rates) for rates in given] == [len(rates) for rates in self._highest]:
            self._highest = [[float(rate) for rate in rates] for rates in given]

    def tensors(self) -> list[Tensor]:
        """Return the cached inverses, which serve gradients of several backward passes."""
        return [inverse for _, _, inverse in self._inverses.values()]

    def _keep_velocity(
        self, member: Optimizer | Together, watched: Watched, which: int, rates: Sequence[float]
    ) -> None:
        """Divide the momentum of groups whose rate is the highest so far by the rate's rise."""
        highest = self._highest[which]
        highest += [0.0] * (len(rates) - len(highest))
        factors = [
            most / rate if rate > most and self.steps else 1.0
            for rate, most in zip(rates, highest, strict=True)
        ]
        for group, rate in enumerate(rates):
            highest[group] = max(highest[group], rate)
        if min(factors, default=1.0) == 1.0:
            return
        optimizers = member.optimizers if isinstance(member, Together) else [member]
        for parameter, _, group in watched.entries:
            for optimizer in optimizers:
                momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
                if momentum is not None and factors[group] != 1.0:
                    momentum.mul_(factors[group])

    def _allowed(self, watched: Watched, which: int, rates: Sequence[float]) -> Tensor:
        """Return ρ_t ‖V‖ of each unit, `[units]`."""
        assert self.limit is not None
        highest = self._highest[which]
        limit = self.limit / (1 + self.steps / COOLING) ** 0.5
        lowered = [
            rate / most if most > 0 else 1.0 for rate, most in zip(rates, highest, strict=True)
        ]
        norms = self._norms[watched.indices]
        allowed: Tensor = torch.maximum(norms, watched.smallest.to(norms))
        if len(set(lowered)) == 1:
            lowest: Tensor = allowed * (limit * lowered[0])
            return lowest
        shares = [limit * lowered[group] for group in watched.deciding]
        return allowed * torch.tensor(shares, dtype=allowed.dtype, device=allowed.device)

    def _squares(
        self,
        watched: Watched,
        rates: Sequence[float],
        known: Sequence[tuple[Sequence[TiedLayers], Tensor]],
    ) -> Tensor:
        """Return this rank's part of η²‖(g_V, g_d)‖² of each unit, `[units]`."""
        having = {unit.name for units, _ in known for unit in units}
        gradients: list[Tensor] = []
        factors: list[float] = []
        places: list[int] = []
        natural: list[tuple[int, float, Tensor]] = []
        dtype = torch.float32
        weight_rates: dict[str, float] = {}
        for parameter, place, group in watched.entries:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.dtype == torch.float64:
                dtype = torch.float64
            unit = watched.units[place]
            if unit.layer.preconditioned and parameter is unit.weight:
                if unit.name in having:
                    weight_rates[unit.name] = rates[group]
                else:
                    natural.append((place, rates[group], self._natural_square(unit, gradient)))
            elif self.ranks.index == 0:
                gradients.append(gradient)
                factors.append(rates[group])
                places.append(place)
        device = watched.indices.device
        squares = torch.zeros(len(watched.units), dtype=dtype, device=device)

        def add(at: list[int], by: list[float], values: Tensor) -> None:
            weights = torch.tensor(by, dtype=dtype, device=device)
            squares.index_add_(0, torch.tensor(at, device=device), values.to(dtype) * weights)

        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients, 2, dtype))
            add(places, [rate**2 for rate in factors], norms.square())
        if natural:
            found = torch.stack([part.to(dtype) for _, _, part in natural])
            add([place for place, _, _ in natural], [rate**2 for _, rate, _ in natural], found)
        for units, values in known:
            at = [watched.place[unit.name] for unit in units]
            add(at, [weight_rates.get(unit.name, 0.0) ** 2 for unit in units], values)
        return squares

    def _natural_square(self, unit: TiedLayers, natural: Tensor) -> Tensor:
        """Return ‖g_V‖² = ⟨n P⁻¹, n⟩ of a preconditioned unit; of several ranks, one's part."""
        taken = [each.last_pass.take(natural) for each in unit.layers if each.last_pass is not None]
        if len(taken) == 1 and taken[0] is not None:
            return taken[0]
        layer = unit.layer
        held = layer.preconditioner
        assert held is not None
        dtype = torch.promote_types(natural.dtype, layer.mean.dtype)
        groups = layer.feature_groups
        rows = to_grouped(natural.to(dtype), groups, layer.TRANSPOSED).flatten(1, 2)
        if self.ranks.size > 1:
            # The ranks hold the same gradients, so each computes only a part of the rows: of a
            # copy, as a product may round by where in its bucket of DDP a gradient lies.
            rows = rows.tensor_split(self.ranks.size, 1)[self.ranks.index].clone()
        return weight_square(rows, held.to(dtype), self._inverse(unit, dtype))

    def _inverse(self, unit: TiedLayers, dtype: torch.dtype) -> Tensor | None:
        """Return P⁻¹ of a whole P, computed once per reparametrisation."""
        preconditioner = unit.layer.preconditioner
        if not isinstance(preconditioner, Dense):
            self._inverses.pop(unit.name, None)
            return None
        matrix = preconditioner.matrix
        held = self._inverses.get(unit.name)
        # Compare by identity: a new tensor may have the address of one that was freed.
        if held is None or held[0] is not matrix or held[1] != matrix._version:
            inverse = torch.linalg.inv(matrix.to(dtype))
            held = self._inverses[unit.name] = (matrix, matrix._version, inverse)
        return held[2].to(dtype)

    def _measure_weights(self) -> None:
        """Measure ‖V‖ of the units where it is not known."""
        device = self._units[0].weight.device
        if self._norms.device != device:
            self._norms = self._norms.to(device)
        missing = [unit for unit in self._units if unit.name in self._missing]
        if not missing:
            return
        norms = torch.stack([weight_norm(unit) for unit in missing])
        # Two machines may round differently, and ranks must stay bit-identical.
        self.ranks.broadcast_([norms])
        for unit, norm in zip(missing, norms, strict=True):
            self.measured(unit, norm)


def weight_norm(unit: TiedLayers) -> Tensor:
    """Return ‖V‖ of a unit, a scalar in float64 (float32 on Apple's GPUs)."""
    layer = unit.layer
    dtype = wide_dtype(unit.weight.device)
    held = layer.preconditioner
    if held is None:
        norm: Tensor = torch.linalg.vector_norm(unit.weight.detach(), dtype=dtype)
        return norm
    # The type of Φ is precise enough, because this only sets a bound.
    narrow = layer.mean.dtype
    rows = layer.grouped_weight(narrow).detach().flatten(1, 2)
    return weight_square(rows, held.to(narrow)).to(dtype).sqrt()

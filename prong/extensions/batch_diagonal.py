"""The per-batch diagonal D of section 3.2, which keeps the variance of every whitened unit at 1.

U ← D U, V ← V D⁻¹.

Between two reparametrisations the activations drift. D corrects the scale of every whitened unit
with the statistics of the current batch. It only scales rows of U and columns of V, and does not
change the function. The variance includes the damping, V[u·h] + ε‖u‖², which is 1 by construction
after a full reparametrisation, so D does not rescale dead units.

D comes from the batch whose gradients the optimizer is about to use, so they are scaled as well:
g_V ← g_V D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from prong.linalg.layout import from_grouped, to_grouped
from prong.refresh.optimizer_state import held_state
from prong.refresh.state_kinds import Kind
from prong.statistics.unit_variances import UnitVariances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor
    from torch.optim import Optimizer

    from prong.distributed.ranks import Ranks
    from prong.refresh.tied_layers import TiedLayers

# What has V's coordinates is divided by D, what has its gradient's is multiplied.
_POWERS = {
    Kind.COVECTOR: 1,
    Kind.MAGNITUDE: 1,
    Kind.SECOND_MOMENT: 2,
    Kind.VECTOR: -1,
    Kind.POINT: -1,
    Kind.UPDATE_SIZE: -1,
    Kind.UPDATE_SQUARE: -2,
}


class BatchDiagonal:
    """Applies D in a hook before the optimizer step, before the step control.

    Attributes:
        damping: by unit name, ε of each group at the last reparametrisation. Units that have not
            been reparametrised yet are missing, and D is not applied to them.
    """

    def __init__(self, units: Sequence[TiedLayers], ranks: Ranks) -> None:
        """Let the layers of `units` gather the variances of their whitened units."""
        self.units, self.ranks = units, ranks
        self.damping: dict[str, Tensor] = {}
        for unit in units:
            for layer in unit.layers:
                layer.variances = UnitVariances(layer.mean)

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        """Apply D to the units whose weight `optimizer` is about to change."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for unit in self.units:
            if id(unit.weight) not in held:
                continue
            if unit.name in self.damping and unit.weight.grad is not None:
                self._apply(optimizer, unit, self._diagonal(unit))
            for layer in unit.layers:
                if layer.variances is not None:
                    layer.variances.clear()

    def _diagonal(self, unit: TiedLayers) -> Float[Tensor, "groups in"]:
        parts = [layer.variances for layer in unit.layers if layer.variances is not None]
        groups, features = unit.layer.mean.shape
        packed = torch.cat(
            [
                sum((p.count for p in parts), torch.zeros_like(parts[0].count)),
                sum((p.total for p in parts), torch.zeros_like(parts[0].total)).flatten(),
                sum((p.squares for p in parts), torch.zeros_like(parts[0].squares)).flatten(),
            ]
        )
        self.ranks.sum_(packed)
        count = packed[0]
        total, squares = packed[1:].reshape(2, groups, features) / count.clamp(min=1)
        variance = squares - total.square() if unit.centred else squares
        whitener = unit.layer.whitener
        floor = self.damping[unit.name].to(whitener).unsqueeze(1) * whitener.square().sum(2)
        wanted = (variance.clamp(min=0) + floor).rsqrt()
        # D = 1 where there is no finite sample.
        diagonal = torch.where((count > 0) & torch.isfinite(wanted), wanted, 1)
        self.ranks.broadcast_([diagonal])
        return diagonal

    def _apply(
        self, optimizer: Optimizer, unit: TiedLayers, diagonal: Float[Tensor, "groups in"]
    ) -> None:
        for layer in unit.layers:
            layer.whitener.mul_(diagonal.unsqueeze(2))
        _scale_columns(unit, unit.weight.data, 1 / diagonal)
        assert unit.weight.grad is not None
        _scale_columns(unit, unit.weight.grad, diagonal)
        for held in held_state(optimizer, unit.weight)[0]:
            factor = diagonal.pow(_POWERS[held.kind])
            _scale_columns(unit, held.tensor, factor)


def _scale_columns(unit: TiedLayers, weight: Tensor, diagonal: Float[Tensor, "groups in"]) -> None:
    layer = unit.layer
    grouped = to_grouped(weight, layer.feature_groups, layer.TRANSPOSED)
    scaled = grouped * diagonal[:, None, None, :].to(weight.dtype)
    weight.copy_(from_grouped(scaled, weight.shape, layer.TRANSPOSED))

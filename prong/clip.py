"""The step clip: no step may be predicted to change the function by more than κ.

In whitened coordinates the natural gradient step is Δ = −η g, and g·Δ predicts the change of the
loss; K-FAC's clip (Ba et al. 2017) scales the gradients of all whitened layers by ν = min(1, √(κ /
Σ η² g·g)). The first steps after a reparametrisation are the dangerous ones: whitening multiplies
directions of small variance by up to ε^−½.

A canonical layer holds the natural gradient n = G P, and its prediction is ⟨n P⁻¹, n⟩. That product
costs M N², or M N k with k leading directions, so it is formed only if the bound ‖P⁻¹‖ ‖n‖² leaves
it open whether κ is exceeded; a dense layer's last backward pass gives it for B² (M + N) or B M k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from prong.layout import weight_to_canonical
from prong.natural import Factors, LastPass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from torch.optim import Optimizer

    from prong.units import Unit


class StepClip:
    """Scales gradients of whitened layers; runs as an optimizer step pre-hook.

    There the gradients have been reduced over ranks and unscaled. Nothing is read back from the
    device, but for a model with canonical layers.

    Attributes:
        limit: κ, dimensionless for a loss averaged over examples; None lets every step pass.
        scale: ν of the last step, a scalar tensor, or None before the first.
    """

    def __init__(self, units: Iterable[Unit], limit: float | None, *, alone: bool = True) -> None:
        """Watch the parameters of `units`; `alone` if no other rank's gradients are added."""
        self.limit = limit
        self.scale: Tensor | None = None
        units = list(units)
        for unit in units:
            for layer in unit.layers:
                layer.last_pass = LastPass() if alone and limit is not None else None
        self._owner = {id(p): unit for unit in units for p in unit.parameters}
        self._inverses: dict[str, tuple[Tensor, int, Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        """Scale the gradients that `optimizer` is about to use."""
        if self.limit is None:
            return
        gradients: list[Tensor] = []
        predicted: Tensor | None = None
        canonical: list[tuple[Unit, Tensor, float]] = []
        for group in optimizer.param_groups:
            found = []
            for p in group["params"]:
                unit = self._owner.get(id(p))
                if unit is None or p.grad is None:
                    continue
                gradients.append(p.grad)
                if unit.layer.canonical and p is unit.weight:
                    canonical.append((unit, p.grad, float(group["lr"]) ** 2))
                else:
                    found.append(p.grad)
            if not found:
                continue
            norm = torch.nn.utils.get_total_norm(found)
            # Half precision would overflow in the square.
            wide = norm.to(torch.promote_types(norm.dtype, torch.float32))
            change = wide.square() * group["lr"] ** 2
            predicted = change if predicted is None else predicted + change
        if not gradients:
            return
        # Fused optimizers unscale inside their kernel: the hook still sees gradients times the loss
        # scale.
        loss_scale = getattr(optimizer, "grad_scale", None)
        scale = 1.0 if loss_scale is None else float(loss_scale) ** 2
        if canonical:
            rest = gradients[0].new_zeros(()) if predicted is None else predicted
            squares = [_square(natural) for _, natural, _ in canonical]
            bound = rest
            for (unit, _natural, rate), square in zip(canonical, squares, strict=True):
                bound = bound + self._inverse(unit)[1].max() * square * rate
            if float(bound) / scale <= self.limit:
                for unit, gradient, _rate in canonical:
                    _factors(unit, gradient)
                self.scale = torch.ones_like(gradients[0][..., :1].reshape(-1)[0])
                return
            predicted = rest
            for (unit, natural, rate), square in zip(canonical, squares, strict=True):
                predicted = predicted + self._exact(unit, natural, square) * rate
        assert predicted is not None
        self.scale = torch.sqrt(self.limit * scale / predicted).clamp(max=1.0)
        torch._foreach_mul_(gradients, self.scale)

    def tensors(self) -> list[Tensor]:
        """What is held for the predictions of canonical layers."""
        return [tensor for _, _, *pair in self._inverses.values() for tensor in pair]

    def _inverse(self, unit: Unit) -> tuple[Tensor, Tensor]:
        """P⁻¹ and a bound on its largest eigenvalue, computed once per reparametrisation.

        Of leading directions, P⁻¹ = ε (I + F diag(1 − s)⁻¹ Fᵀ) with s the diagonal of Fᵀ F: only
        1/(1 − s) is held, `[groups, k]`.
        """
        layer = unit.layer
        precision, damping = layer.precision_matrix, layer.precision_damping
        assert precision is not None
        held = self._inverses.get(unit.name)
        # By identity: memory of a tensor that was let go may hold another one.
        if held is None or held[0] is not precision or held[1] != precision._version:
            if damping is None:
                inverse = torch.linalg.inv(precision)
                largest = inverse.abs().sum(-1).amax(-1)
            else:
                inverse = 1 / (1 - precision.square().sum(1))
                largest = damping
                if inverse.shape[1]:
                    largest = damping * inverse.amax(1)
            held = self._inverses[unit.name] = (
                precision,
                precision._version,
                inverse,
                largest,
            )
        return held[2], held[3]

    def _exact(self, unit: Unit, natural: Tensor, square: Tensor) -> Tensor:
        layer = unit.layer
        factors = _factors(unit, natural)
        if factors is not None:
            rows, inner, left = factors
            if left is not None:
                return ((rows @ rows.T) * (inner @ left.T)).sum()
            assert layer.precision_damping is not None
            # n F, but for 1 − s, whose square meets the 1/(1 − s) of P⁻¹.
            leading = (rows.T @ inner).square().sum(0) / self._inverse(unit)[0][0]
            damping = layer.precision_damping[0]
            return damping * square + leading.sum() / damping
        inverse = self._inverse(unit)[0]
        rows = weight_to_canonical(
            natural.to(inverse.dtype), layer.feature_groups, layer.TRANSPOSED
        ).flatten(1, 2)
        if layer.precision_damping is None:
            return ((rows @ inverse) * rows).sum()
        assert layer.precision_matrix is not None
        leading = ((rows @ layer.precision_matrix).square() * inverse.unsqueeze(1)).sum((1, 2))
        return (layer.precision_damping * (rows.square().sum((1, 2)) + leading)).sum()


def _factors(unit: Unit, natural: Tensor) -> Factors | None:
    """What a dense layer's backward pass kept, if `natural` came of it; it is let go."""
    taken = [layer.last_pass.take(natural) for layer in unit.layers if layer.last_pass is not None]
    return taken[0] if len(taken) == 1 else None


def _square(gradient: Tensor) -> Tensor:
    """‖gradient‖² in float32 at least, and without a copy of the gradient's size."""
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=dtype)
    return norm.square()

"""The step clip: no step may be predicted to change the function by more than κ.

In whitened coordinates the natural gradient step is Δ = −η g, and g·Δ predicts the change of the
loss; K-FAC's clip (Ba et al. 2017) scales the gradients of all whitened layers by ν = min(1, √(κ /
Σ η² g·g)). The first steps after a reparametrisation are the dangerous ones: whitening multiplies
directions of small variance by up to ε^−½.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from torch.optim import Optimizer


class StepClip:
    """Scales gradients of whitened layers; runs as an optimizer step pre-hook.

    There the gradients have been reduced over ranks and unscaled. Nothing is read back from the
    device.

    Attributes:
        limit: κ, dimensionless for a loss averaged over examples; None lets every step pass.
        scale: ν of the last step, a scalar tensor, or None before the first.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], limit: float | None) -> None:
        """Watch `parameters`."""
        self.limit = limit
        self.scale: Tensor | None = None
        self._watched = {id(parameter) for parameter in parameters}

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        """Scale the gradients that `optimizer` is about to use."""
        if self.limit is None:
            return
        gradients: list[Tensor] = []
        predicted: Tensor | None = None
        for group in optimizer.param_groups:
            found = [
                p.grad for p in group["params"] if p.grad is not None and id(p) in self._watched
            ]
            if not found:
                continue
            gradients += found
            norm = torch.nn.utils.get_total_norm(found)
            # Half precision would overflow in the square.
            wide = norm.to(torch.promote_types(norm.dtype, torch.float32))
            change = wide.square() * group["lr"] ** 2
            predicted = change if predicted is None else predicted + change
        if predicted is None:
            return
        # Fused optimizers unscale inside their kernel: the hook still sees gradients times the loss
        # scale.
        loss_scale = getattr(optimizer, "grad_scale", None)
        if loss_scale is not None:
            predicted = predicted / loss_scale.to(predicted) ** 2
        self.scale = torch.sqrt(self.limit / predicted).clamp(max=1.0)
        torch._foreach_mul_(gradients, self.scale)

"""Newton-Muon: Muon on gradients that the second moment of a layer's inputs preconditions.

Du and Su, "The Newton-Muon Optimizer", arXiv 2604.01472 (2026). For a dense layer with weight W
[out, in], gradient G, momentum M and a batch's inputs Z [n, in]

    K ← β K + (1 − β) ZᵀZ/n        in every k-th step, K = 0.001 I at first
    G′ = G (K + γ I)⁻¹             γ = ridge · tr K / in
    M ← μ M + G′
    W ← W − η s msgn(G′ + μ M)

where msgn(X) = U Vᵀ for X = U S Vᵀ, by Newton-Schulz. β = 0.95, ridge = 0.2, k = 32, μ = 0.95 and
five iterations are those of the authors' published training script. Ours are: the first inverse in
the first step and not in the 32nd, as trainings here are short; Muon's decoupled weight decay; and
s = 0.2 √max(out, in), torch.optim.Muon's "match_rms_adamw", with which AdamW's rate serves here.
The layer's bias is left to another optimizer, and Z has no column for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Muon's quintic: steep at 0, so that singular values come to lie within about 0.7 to 1.2."""


def msgn(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return U Vᵀ of the singular value decomposition, as nearly as Muon does.

    The product runs in bfloat16 on an accelerator, and on a CPU in the matrix's own type, which
    many CPUs multiply faster.

    Args:
        matrix: Of any shape [m, n].
        iterations: Newton-Schulz steps; five bring singular values above about 1 % of the Frobenius
            norm near 1.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    if x.device.type != "cpu":
        x = x.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.T).to(matrix.dtype)


class NewtonMuon(torch.optim.Optimizer):
    """Newton-Muon for the weights of dense layers; give all other parameters to another optimizer.

    Hooks on the layers take ZᵀZ in those training passes after which an inverse is due.
    """

    def __init__(
        self,
        layers: Iterable[nn.Linear],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        decay: float = 0.95,
        ridge: float = 0.2,
        period: int = 32,
        iterations: int = 5,
    ) -> None:
        """Take the layers' weights.

        Args:
            layers: Dense layers; those that share a weight share its K.
            lr: η.
            momentum: μ.
            weight_decay: Share of η by which a weight shrinks in a step.
            decay: β, of the average of second moments.
            ridge: γ in units of K's mean eigenvalue.
            period: k, steps from one inverse to the next.
            iterations: Newton-Schulz steps.
        """
        layers = list(layers)
        weights = list({id(layer.weight): layer.weight for layer in layers}.values())
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decay": decay,
            "ridge": ridge,
            "period": period,
            "iterations": iterations,
        }
        super().__init__(weights, defaults)
        self._seen: dict[Tensor, tuple[Tensor, int]] = {}
        for layer in layers:
            layer.register_forward_pre_hook(self._observe)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; returns what the closure, if any, returns."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group)
        self._seen.clear()
        return result

    def _step(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
            state["momentum_buffer"] = torch.zeros_like(weight)
            state["second_moment"], state["inverse"] = eye / 1000, eye
            state["steps"] = 0
        if state["steps"] % group["period"] == 0 and weight in self._seen:
            _refresh(state, *self._seen[weight], group["decay"], group["ridge"])
        state["steps"] += 1
        gradient = weight.grad @ state["inverse"]
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        direction = msgn(gradient.add(buffer, alpha=group["momentum"]), group["iterations"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))

    def _observe(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        weight = layer.get_parameter("weight")
        due = self.state.get(weight, {}).get("steps", 0) % self.param_groups[0]["period"] == 0
        if not (due and layer.training and torch.is_grad_enabled()):
            return
        rows = inputs[0].detach().flatten(0, -2)
        moment, count = rows.T @ rows, len(rows)
        if weight in self._seen:
            moment, count = self._seen[weight][0] + moment, self._seen[weight][1] + count
        self._seen[weight] = moment, count


def _refresh(state: dict[str, Any], total: Tensor, count: int, decay: float, ridge: float) -> None:
    """Average K with this step's second moment, and invert it; an old inverse stays if K cannot."""
    moment = state["second_moment"].mul_(decay).add_(total, alpha=(1 - decay) / count)
    damped = moment.clone()
    damped.diagonal().add_(ridge * moment.diagonal().mean() + 1e-8)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not failed:
        state["inverse"] = torch.cholesky_inverse(factor)

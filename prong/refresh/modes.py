"""The three modes of a whitened layer, and the conversion between them, exact up to rounding.

- `fold`: V and d are the parameters; W = V U is formed in every forward pass, 2 M N² multiply-adds.
- `activations`: the same parameters; where the batch has fewer rows (B) than the weight has outputs
  times taps (M), U (h − c) is formed instead, 2 B N².
- `preconditioned`: W and d are the parameters, and the backward pass returns the natural gradient,
  min(B, M) N². It is only for `torch.optim.SGD`, whose path does not depend on the coordinates.

"auto" stands for `preconditioned` where it is allowed, else for `activations`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prong.linalg.layout import from_grouped, to_grouped
from prong.linalg.projection import Phi, from_canonical, to_canonical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from prong.options import TwoSided
    from prong.refresh.tied_layers import TiedLayers

MODES = ("auto", "fold", "activations", "preconditioned")


def refusal(
    optimizers: Sequence[Optimizer], batch_diagonal: bool, two_sided: TwoSided | None
) -> str:
    """Return why layers cannot run preconditioned; empty if they can."""
    for optimizer in optimizers:
        if type(optimizer) is not torch.optim.SGD:
            return f"{type(optimizer).__name__} is not torch.optim.SGD: its path depends on U"
    if batch_diagonal:
        return "the per-batch diagonal acts on single whitened units"
    return "" if two_sided is None else "two-sided whitening needs the whitened weights"


def chosen_mode(mode: str, reason: str) -> str:
    """Return the mode, with "auto" replaced by its choice.

    Args:
        mode: one of `MODES`.
        reason: the result of `refusal`.

    Raises:
        ValueError: if `mode` is unknown, or preconditioned although there is a reason against it.
    """
    if mode == "canonical":
        raise ValueError("mode='canonical': its name is now 'preconditioned'")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: allowed are {', '.join(MODES)}")
    if mode == "auto":
        return "activations" if reason else "preconditioned"
    if mode == "preconditioned" and reason:
        raise ValueError(
            f"mode='preconditioned': {reason}; allowed here are fold, activations, auto"
        )
    return mode


@torch.no_grad()
def convert(unit: TiedLayers, mode: str, optimizers: Sequence[Optimizer] = ()) -> None:
    """Change the mode of a unit; function and momentum stay the same up to rounding.

    Args:
        unit: the layers that share a weight.
        mode: "fold", "activations" or "preconditioned".
        optimizers: the optimizers whose momentum of the weight is converted.

    Raises:
        ValueError: if `mode` is "preconditioned" and the unit has two-sided whitening.
    """
    layer = unit.layer
    wanted = mode == "preconditioned"
    if wanted and layer.output_whitener is not None:
        raise ValueError(f"{unit.name}: two-sided whitening needs the whitened weights")
    if layer.preconditioned != wanted:
        phi = unit.wide_phi()
        held = [unit.weight.data]
        held += [
            buffer
            for optimizer in optimizers
            if torch.is_tensor(
                buffer := optimizer.state.get(unit.weight, {}).get("momentum_buffer")
            )
        ]
        groups, transposed = layer.feature_groups, layer.TRANSPOSED
        for tensor in held:
            wide = to_grouped(tensor.to(phi.whitener.dtype), groups, transposed)
            moved = from_grouped(recoordinated(wide, phi, wanted), tensor.shape, transposed)
            tensor.copy_(moved)
        for each in unit.layers:
            dtype = each.mean.dtype
            if wanted:
                each.precision_matrix, each.precision_damping = _precision(phi.whitener, dtype)
                each.whitener = None  # type: ignore[assignment]
            else:
                each.whitener = phi.whitener.to(dtype, copy=True)
                each.precision_matrix = each.precision_damping = None
    for each in unit.layers:
        each.activations = mode == "activations"


def recoordinated(weight: Tensor, phi: Phi, preconditioned: bool) -> Tensor:
    """Convert a vector to the other coordinates: V U if `preconditioned`, else W U⁻¹."""
    carry = to_canonical if preconditioned else from_canonical
    return carry(weight, None, phi)[0]


def _precision(whitener: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return P = UᵀU; for the identity (as at the start) no leading direction, and ε = 1."""
    groups, features = whitener.shape[:2]
    identity = torch.eye(features, dtype=whitener.dtype, device=whitener.device)
    if bool((whitener == identity).all()):
        nothing = torch.zeros(groups, features, 0, dtype=dtype, device=whitener.device)
        return nothing, torch.ones(groups, dtype=dtype, device=whitener.device)
    return (whitener.transpose(1, 2) @ whitener).to(dtype), None

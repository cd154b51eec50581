"""The three ways to run a whitened layer, and exact conversion between them.

- `fold`: V and d are the parameters; W = V U is formed in every forward pass, 2 M N² multiply-adds.
- `activations`: the same parameters; U (h − c) is formed instead wherever the batch has fewer rows
  than the weight has outputs (times taps), 2 B N².
- `preconditioned`: W and d are the parameters and the backward pass gives the natural gradient,
  min(B, M) N². Only for `torch.optim.SGD`, whose path does not depend on the coordinates.
- `auto`: `preconditioned` where it is allowed, else `activations`.
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
    """Why layers cannot run preconditioned; empty if they can."""
    for optimizer in optimizers:
        if type(optimizer) is not torch.optim.SGD:
            return f"{type(optimizer).__name__} is not torch.optim.SGD: its path depends on U"
    if batch_diagonal:
        return "the per-batch diagonal acts on single whitened units"
    return "" if two_sided is None else "two-sided whitening needs the whitened weights"


def chosen_mode(mode: str, reason: str) -> str:
    """What "auto" stands for.

    Args:
        mode: one of `MODES`.
        reason: what `refusal` gave.

    Raises:
        ValueError: if `mode` is unknown, or preconditioned although there is a reason against it.
    """
    if mode == "canonical":
        raise ValueError("mode='canonical': it is called 'preconditioned' now")
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
    """Let a unit run in another mode; its function and its momentum stay, to rounding.

    Args:
        unit: the layers that share a weight.
        mode: "fold", "activations" or "preconditioned".
        optimizers: those whose momentum of the weight is to follow.

    Raises:
        ValueError: if the unit is whitened on two sides and `mode` is preconditioned.
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
    """V U or, the other way, W U⁻¹: a vector in the other coordinates."""
    carry = to_canonical if preconditioned else from_canonical
    return carry(weight, None, phi)[0]


def _precision(whitener: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """P = UᵀU; no direction and ε = 1 where it is the identity, as before the first statistics."""
    groups, features = whitener.shape[:2]
    identity = torch.eye(features, dtype=whitener.dtype, device=whitener.device)
    if bool((whitener == identity).all()):
        nothing = torch.zeros(groups, features, 0, dtype=dtype, device=whitener.device)
        return nothing, torch.ones(groups, dtype=dtype, device=whitener.device)
    return (whitener.transpose(1, 2) @ whitener).to(dtype), None

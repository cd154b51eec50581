"""What others put on a layer after it was whitened: masks, norms, parametrizations, adapters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from prong.layers.base import Whitened
from prong.layers.twins import TWINS

_HOOKS = {
    "torch.nn.utils.prune": "prune",
    "torch.nn.utils.weight_norm": "weight_norm",
    "torch.nn.utils.spectral_norm": "spectral_norm",
}


def altered(layer: Whitened) -> str:
    """What computes a layer's V or d from other parameters since `whiten`; empty if nothing."""
    if parametrize.is_parametrized(layer):
        names = ", ".join(layer.parametrizations)  # type: ignore[arg-type]
        return f"a parametrization of its {names} was put on after whiten: it acts on V, not on W"
    for hook in layer._forward_pre_hooks.values():
        for kind in type(hook).__mro__:
            if kind.__module__ in _HOOKS:
                name = _HOOKS[kind.__module__]
                return f"{name} was put on after whiten: it acts on V, not on W"
    if any(name not in layer._parameters for name in ("weight", "bias")):
        return "its weight or bias has been replaced by something that is no parameter of its own"
    if type(layer) not in TWINS.values():
        return f"its class was changed to {type(layer).__name__} after whiten"
    return ""


def merge_is_wrong(layer: Whitened) -> bool:
    """Whether W + ΔW is not what adding ΔW to the layer's weight gives, now or after a refresh."""
    if layer.weight.requires_grad or bool((layer.mean != 0).any()):
        return True
    whiteners: list[Tensor | None] = [layer.output_whitener]
    if not layer.preconditioned:
        whiteners.append(layer.whitener)
    return any(held is not None and not _is_identity(held) for held in whiteners)


def _is_identity(matrix: Tensor) -> bool:
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return bool((matrix == identity).all())

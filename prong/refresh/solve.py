"""The reparametrisation of one unit: from statistics to Φ. A failure keeps the old Φ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prong.linalg.conditioning import condition_number, conditioning
from prong.linalg.projection import Phi
from prong.linalg.roots import (
    Root,
    RootFailure,
    damped,
    diagonal_root,
    whitening_root,
)
from prong.options import SolveSettings
from prong.refresh.result import DAMPING_TOO_SMALL, NO_DECOMPOSITION, NO_SAMPLE, NOT_FINITE, Result

if TYPE_CHECKING:
    from torch import Tensor

    from prong.refresh.tied_layers import TiedLayers
    from prong.statistics.moments import Moments

BALANCED = 0.25


def group_damping(moments: Moments, whitening: SolveSettings) -> Tensor:
    """Return ε of each group in the units of Σ, `[groups]`."""
    return torch.full_like(moments.mean[:, 0], whitening.damping)


def find_phi(
    unit: TiedLayers, moments: Moments, whitening: SolveSettings, deltas: Moments | None = None
) -> tuple[Result, Phi | None]:
    """Compute new c and U for one unit (line 9 of Algorithm 1).

    If a bias can take up −W c, then c is the mean and Σ the centred covariance. If not, c = 0 and
    Σ = E[hhᵀ].

    Args:
        unit: the layers that share the Φ.
        moments: moments of all inputs of the unit, over all ranks.
        whitening: the settings.
        deltas: moments of the gradients of all outputs of the unit, for two-sided whitening.

    Returns:
        The result, and the new Φ (None to keep the old one).
    """
    whitening = whitening.for_layer(unit.layer.mean.dtype)
    result = begun(moments)
    if not float(moments.count) > 0:
        return result.refuse(NO_SAMPLE), None
    mean = moments.mean if unit.centred else torch.zeros_like(moments.mean)
    covariance = moments.second_moment(mean)
    covariance = (covariance + covariance.transpose(1, 2)) / 2
    damping = group_damping(moments, whitening)
    # ε must also be a normal number of float32. For a smaller one, U = ε^−½ may leave the range.
    if bool((damping < torch.finfo(torch.float32).tiny).any()):
        return result.refuse(DAMPING_TOO_SMALL), None
    old = unit.wide_phi()
    stale = damped(moments.second_moment(old.mean), damping)
    if bool(torch.isfinite(stale).all()):
        found = conditioning(old.whitener, stale)
        result.condition_before, result.whitening_error_before = found
    fresh = damped(covariance, damping)
    try:
        root = _root(covariance, damping, whitening)
        outer = _output_root(deltas, whitening, result)
    except RootFailure:
        return result.refuse(NO_DECOMPOSITION, "kept"), None
    if outer is None:
        phi = Phi(mean, root.whitener, root.inverse, old.output)
    else:
        phi = Phi(mean, root.whitener, root.inverse, outer.whitener, outer.inverse)
        result.output_fresh = True
    result.updated, result.fallback = True, root.fallback
    result.condition_after, result.whitening_error = conditioning(root.whitener, fresh)
    result.effective_dimension = _effective_dimension(
        covariance, damping, root.whitener, whitening.kind
    )
    result.damping = damping.mean()
    return result, phi


def begun(moments: Moments) -> Result:
    """Create a result with the counts of the statistics only."""
    return Result(
        examples=moments.examples.squeeze(),
        samples=moments.count.squeeze(),
        rejected=moments.rejected.squeeze(),
    )


def put_in(unit: TiedLayers, old: Phi, new: Phi, init: str, result: Result) -> None:
    """Install Φ; keep the function ("preserve", "balanced") or the numbers in V ("whitened")."""
    if init not in ("preserve", "balanced"):
        unit.keep_numbers(old, new)
    elif not unit.move(old, new):
        result.refuse(NOT_FINITE, "kept")


def _output_root(deltas: Moments | None, whitening: SolveSettings, result: Result) -> Root | None:
    """Compute R from the second moment of δ; None, to keep R, if that is missing or zero."""
    if deltas is None or whitening.two_sided is None or not float(deltas.count) > 0:
        return None
    moment = deltas.second_moment(torch.zeros_like(deltas.mean))
    moment = (moment + moment.transpose(1, 2)) / 2
    scale = moment.diagonal(dim1=1, dim2=2).mean(1)
    if not bool((scale > 0).all()):
        return None
    # Divide by the mean eigenvalue: δ² may be tiny, and the loss's scale must have no effect.
    moment = moment / scale[:, None, None]
    damping = torch.full_like(scale, whitening.two_sided.damping)
    root = whitening_root(moment, damping, whitening.root, whitening.decomposition_dtype)
    result.output_condition = condition_number(damped(moment, damping))
    if whitening.two_sided.normalized:
        factor = root.whitener.square().sum((1, 2)).div(moment.shape[-1]).rsqrt()
    else:
        factor = scale.rsqrt()
    factor = factor[:, None, None]
    return Root(root.whitener * factor, root.inverse / factor, root.fallback)


def _effective_dimension(
    covariance: Tensor, damping: Tensor, whitener: Tensor, kind: str
) -> Tensor:
    """Return E‖U(h − c)‖² = tr(U Σ Uᵀ). For a full root it is in − ε‖U‖², without a product."""
    if kind == "full":
        lost = (damping * whitener.square().sum((1, 2))).sum()
        return covariance.shape[0] * covariance.shape[1] - lost
    variances = covariance.diagonal(dim1=1, dim2=2)
    return (variances * whitener.diagonal(dim1=1, dim2=2).square()).sum()


def _root(covariance: Tensor, damping: Tensor, whitening: SolveSettings) -> Root:
    if whitening.kind == "centring":
        if not bool(torch.isfinite(covariance).all()):
            raise RootFailure("the covariance is not finite")
        identity = torch.eye(
            covariance.shape[-1], dtype=covariance.dtype, device=covariance.device
        ).expand_as(covariance)
        return Root(identity, identity, "")
    if whitening.kind == "diagonal":
        return diagonal_root(covariance, damping)
    return whitening_root(covariance, damping, whitening.root, whitening.decomposition_dtype)

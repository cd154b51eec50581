"""The reparametrisation of a preconditioned unit: P = (Σ + εI)⁻¹, without a root.

W does not change with P. The only change of a parameter is d′ = d + Σ_taps W (c′ − c), for the new
mean. An error of P therefore does not change the function, and the type of the parameters is
precise enough for P. The momentum in the coordinates of W is m = (m_W − m_b cᵀ) P, and becomes

    m′ = (m P⁻¹ − m_d (c′ − c)ᵀ) P′.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prong.linalg.conditioning import fixed_signs
from prong.linalg.layout import from_grouped, to_grouped
from prong.linalg.preconditioner import Dense, LowRank, Preconditioner
from prong.linalg.roots import TOLERANCE, RootFailure, damped, whitening_root
from prong.options import SolveSettings
from prong.refresh.fit import AFTER, Frame, fit
from prong.refresh.optimizer_state import pairs_of, reset_state
from prong.refresh.result import DAMPING_TOO_SMALL, NO_DECOMPOSITION, NO_SAMPLE, Result
from prong.refresh.solve import begun, group_damping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor
    from torch.optim import Optimizer

    from prong.refresh.tied_layers import TiedLayers
    from prong.statistics.moments import Moments

_PROBES = 4
_FIRST = 32
_SPARE = 8
_SHARE = 3  # With more than in/3 directions, 2 k · in per row are about as expensive as a whole P.


def leading(
    covariance: Float[Tensor, "groups in in"],
    damping: Float[Tensor, " groups"],
    share: float,
    start: Float[Tensor, "groups in k"] | None,
) -> LowRank | None:
    """Compute P = (Σ_k + εI)⁻¹ from the k directions of Σ whose eigenvalues exceed `share` · ε.

    Σ_k consists of k Ritz pairs of Σ from subspace iteration. All further results are exact for
    this P. A direction with eigenvalue λ that is left out is scaled by 1/ε instead of 1/(λ + ε).

    Args:
        covariance: Σ.
        damping: ε.
        share: eigenvalues up to `share` · ε are left out.
        start: the last directions, which are updated by one iteration; None to start without.

    Returns:
        P, or None if it needs so many directions that a whole P is cheaper.
    """
    groups, size = covariance.shape[:2]
    most = size // _SHARE
    if most <= _SPARE:
        return None
    kept = 0 if start is None else start.shape[2]
    basis = covariance.new_zeros(groups, size, 0) if start is None else start
    iterations = 1
    width = min(most, max(_FIRST, kept + _SPARE))
    while True:
        if width > kept:
            fresh = fixed_signs(size, width, covariance.dtype, covariance.device)[:, kept:]
            basis = torch.cat([basis, fresh.expand(groups, -1, -1)], 2)
        if start is None or kept == 0:
            iterations = 3
        for _ in range(iterations):
            basis, _ = torch.linalg.qr(covariance @ torch.linalg.qr(basis)[0])
        values, vectors = torch.linalg.eigh(basis.transpose(1, 2) @ covariance @ basis)
        basis = basis @ vectors
        wanted = int((values > share * damping[:, None]).sum(1).max())
        if wanted <= width - 2 or width == most:
            break
        kept, width, start = width, min(most, 2 * width), None
    if wanted > most - 2 or not bool(torch.isfinite(values).all()):
        return None
    values, basis = values[:, -max(wanted, 1) :].clamp(min=0), basis[..., -max(wanted, 1) :]
    gains = values / (values + damping[:, None])
    return LowRank((basis * gains.sqrt().unsqueeze(1)).contiguous(), damping)


def find_preconditioner(
    unit: TiedLayers, moments: Moments, whitening: SolveSettings
) -> tuple[Result, Preconditioner | None, Tensor]:
    """Compute new P and c for one preconditioned unit with full whitening.

    Args:
        unit: the layers that share P.
        moments: moments of all inputs of the unit, over all ranks.
        whitening: the settings; the root has no effect, because all roots give the same P.

    Returns:
        The result, P (None to keep the old one), and c.
    """
    layer, held = unit.layer, unit.layer.preconditioner
    assert held is not None
    whitening = whitening.for_layer(layer.mean.dtype)
    result = begun(moments)
    mean = moments.mean if unit.centred else torch.zeros_like(moments.mean)
    if not float(moments.count) > 0:
        return result.refuse(NO_SAMPLE), None, mean
    damping = group_damping(moments, whitening)
    if bool((damping < torch.finfo(torch.float32).tiny).any()):
        return result.refuse(DAMPING_TOO_SMALL), None, mean
    covariance = moments.covariance() if unit.centred else moments.second_moment(mean)
    matrix = damped(covariance, damping)
    if not bool(torch.isfinite(matrix).all()):
        return result.refuse(NO_DECOMPOSITION, "kept"), None, mean
    old = held.to(matrix.dtype)
    shift = moments.mean - layer.mean.to(mean.dtype)
    frame = Frame(matrix)
    before = fit(old, frame, shift if unit.centred else None)
    result.condition_before, result.whitening_error_before = before
    try:
        preconditioner, fallback = _found(old, covariance, damping, whitening)
    except RootFailure:
        return result.refuse(NO_DECOMPOSITION, "kept"), None, mean
    after = fit(preconditioner, frame, None, AFTER)
    result.condition_after, result.whitening_error = after
    result.updated, result.fallback = True, fallback
    result.effective_dimension = preconditioner.effective_dimension(damping)
    result.damping = damping.mean()
    return result, preconditioner, mean


def _found(
    old: Preconditioner, covariance: Tensor, damping: Tensor, whitening: SolveSettings
) -> tuple[Preconditioner, str]:
    """Compute P by its leading directions if the settings say so and they are few, else whole."""
    if whitening.leading is not None:
        start = old.directions if isinstance(old, LowRank) else None
        few = leading(covariance, damping, whitening.leading, start)
        if few is not None:
            return few, ""
    inverted, fallback = inverse(covariance, damping, whitening.decomposition_dtype)
    return Dense(inverted), fallback


def inverse(covariance: Tensor, damping: Tensor, dtype: torch.dtype) -> tuple[Tensor, str]:
    """Compute (Σ + εI)⁻¹ by Cholesky's factorisation in `dtype`; if it fails, by a root in float64.

    Raises:
        RootFailure: if all attempts fail.
    """
    matrix = damped(covariance.to(dtype), damping.to(dtype))
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not bool((info != 0).any()):
        preconditioner = torch.cholesky_inverse(factor)
        probes = fixed_signs(matrix.shape[-1], _PROBES, dtype, matrix.device)
        missed = preconditioner @ (matrix @ probes) - probes
        if float(missed.square().mean().sqrt()) <= TOLERANCE:
            return preconditioner.to(covariance.dtype), ""
    root = whitening_root(covariance, damping, "cholesky", torch.float64)
    return root.whitener.transpose(1, 2) @ root.whitener, root.fallback or "float64"


@torch.no_grad()
def install(
    unit: TiedLayers,
    preconditioner: Preconditioner,
    mean: Tensor,
    optimizers: Sequence[Optimizer],
    rule: str,
    *,
    transport: bool = True,
) -> bool:
    """Install P′ and c′, and transform d and the momentum.

    Args:
        unit: the layers that share P.
        preconditioner: P′.
        mean: c′.
        optimizers: those that may hold a momentum.
        rule: one of `MOMENTUM_RULES`.
        transport: False to leave the momentum of W to others; see `shared_transport`.

    Returns:
        False, without any change, if a bias or a momentum would not be finite.
    """
    layer, old = unit.layer, unit.layer.preconditioner
    assert old is not None
    groups = layer.feature_groups
    dtype = preconditioner.dtype
    shift = mean.to(dtype) - layer.mean.to(dtype)
    column = shift.unsqueeze(-1)
    written: list[tuple[Tensor, Tensor]] = []
    if unit.centred:
        moved = (layer.grouped_weight(dtype).sum(2) @ column).reshape(-1)
        written += [(bias, bias.to(dtype) + moved) for bias in unit.biases]
    for pair in [] if rule == "reset" else pairs_of(optimizers, unit):
        if pair.weight is None or not transport:
            continue
        wide = to_grouped(pair.weight.to(dtype), groups, layer.TRANSPOSED)
        covector = old.to(dtype).divided(wide.flatten(1, 2))
        carried = preconditioner.times(covector).reshape(wide.shape)
        biases = [value.to(dtype) for value in pair.partners if value is not None]
        if unit.centred and biases:
            total = torch.stack(biases).sum(0).reshape(groups, -1)
            moved = preconditioner.times(shift.unsqueeze(1))
            carried = carried - total[:, :, None, None] * moved[:, :, None]
        written.append((pair.weight, from_grouped(carried, pair.weight.shape, layer.TRANSPOSED)))
    if not all(bool(torch.isfinite(value).all()) for _, value in written):
        return False
    for tensor, value in written:
        tensor.copy_(value)
    if rule == "reset":
        reset_state(optimizers, unit.parameters)
    for each in unit.layers:
        each.put_preconditioner(preconditioner)
        each.mean.copy_(mean)
    return True

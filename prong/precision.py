"""A reparametrisation of a canonical layer: P = (Σ + εI)⁻¹ itself, without a root.

W stays as it is, whatever P is, so nothing here can change the function but d, which takes up the
new mean, d′ = d + Σ_taps W (c′ − c). That is why the parameters' own precision is enough for P.
Momentum in W's coordinates is m = (m_W − m_b cᵀ) P and follows as

    m′ = (m P⁻¹ − m_d (c′ − c)ᵀ) P′   ("gradient")      m′ = m, m_d′ = m_d + Σ_taps m (c′ − c)
    ("velocity").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prong.conditioning import fixed_signs
from prong.layout import weight_from_canonical, weight_to_canonical
from prong.momentum import reset_state
from prong.refresh import FALLBACKS, Outcome, Whitening, group_damping
from prong.roots import TOLERANCE, RootFailure, damped, whitening_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from prong.moments import Moments
    from prong.units import Unit

_PROBES = 4
_LANCZOS = 12


def find_precision(
    unit: Unit, moments: Moments, whitening: Whitening
) -> tuple[Outcome, Tensor | None, Tensor]:
    """New P and c of one canonical unit, full whitening.

    Args:
        unit: the layers that share P.
        moments: of all their inputs, over all ranks.
        whitening: what to do; its root does not matter, since all give this P.

    Returns:
        The numbers to report, P `[groups, in, in]` (None if the old one is to be kept), and c.
    """
    layer = unit.layer
    assert layer.precision_matrix is not None
    outcome = Outcome.empty(moments.mean.device)
    outcome.put(
        updated=0,
        reason=0,
        fallback=0,
        examples=moments.examples,
        samples=moments.count,
        rejected=moments.rejected,
    )
    mean = moments.mean if unit.centred else torch.zeros_like(moments.mean)
    if not float(moments.count) > 0:
        outcome.put(reason=1)
        return outcome, None, mean
    damping = group_damping(unit, moments, whitening)
    if bool((damping < torch.finfo(torch.float32).tiny).any()):
        outcome.put(reason=4)
        return outcome, None, mean
    covariance = moments.covariance()
    if not unit.centred:
        covariance = moments.second_moment(mean)
    matrix = damped(covariance, damping)
    old = layer.precision_matrix.to(matrix.dtype)
    shift = moments.mean - layer.mean.to(mean.dtype)
    condition, error = fit(old, matrix, shift if unit.centred else None)
    outcome.put(condition_before=condition, whitening_error_before=error)
    try:
        precision, fallback = inverse(covariance, damping, whitening.precision)
    except RootFailure:
        outcome.put(reason=2, fallback=3)
        return outcome, None, mean
    condition, error = fit(precision, matrix, None)
    features = precision.shape[0] * precision.shape[1]
    trace = precision.diagonal(dim1=1, dim2=2).sum(1)
    outcome.put(
        updated=1,
        fallback=FALLBACKS.index(fallback),
        condition_after=condition,
        whitening_error=error,
        effective_dimension=features - (damping * trace).sum(),
        damping=damping.mean(),
    )
    return outcome, precision, mean


def inverse(covariance: Tensor, damping: Tensor, dtype: torch.dtype) -> tuple[Tensor, str]:
    """(Σ + εI)⁻¹ by Cholesky's factorisation in `dtype`; failing that, by roots in float64.

    Raises:
        RootFailure: if nothing inverts it.
    """
    matrix = damped(covariance.to(dtype), damping.to(dtype))
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not bool((info != 0).any()):
        precision = torch.cholesky_inverse(factor)
        probes = fixed_signs(matrix.shape[-1], _PROBES, dtype, matrix.device)
        missed = precision @ (matrix @ probes) - probes
        if float(missed.square().mean().sqrt()) <= TOLERANCE:
            return precision.to(covariance.dtype), ""
    root = whitening_root(covariance, damping, "cholesky", torch.float64)
    return root.whitener.transpose(1, 2) @ root.whitener, root.fallback or "float64"


def fit(precision: Tensor, matrix: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Condition number and whitening error of C = U A Uᵀ, from P = UᵀU by products with vectors.

    C has the eigenvalues of P A, which is symmetric in the inner product of A: Lanczos' method
    bounds their extremes from inside. ‖C − I‖²_F = tr (P A − I)² by Hutchinson's estimator.

    Args:
        precision: P.
        matrix: Σ + εI about the samples' own mean.
        shift: that mean minus c, or None for none: A = matrix + shift shiftᵀ.

    Returns:
        The condition number (a lower bound; the worst of the groups) and ‖C − I‖_F/√in.
    """

    def times(vectors: Tensor) -> Tensor:
        product = matrix @ vectors
        if shift is not None:
            column = shift.unsqueeze(-1)
            product = product + column * (column * vectors).sum(1, keepdim=True)
        return product

    groups, size = matrix.shape[:2]
    probes = fixed_signs(size, _PROBES, matrix.dtype, matrix.device).expand(groups, -1, -1)
    left = times(precision @ probes) - probes
    right = precision @ times(probes) - probes
    error = (left * right).mean().clamp(min=0).sqrt()
    vector = probes[..., :1]
    basis: list[Tensor] = []
    images: list[Tensor] = []
    for _ in range(min(size, _LANCZOS)):
        for other, image in zip(basis, images, strict=True):
            vector = vector - other * (image * vector).sum(1, keepdim=True)
        image = times(vector)
        length = (image * vector).sum(1, keepdim=True)
        if not bool((length > torch.finfo(length.dtype).eps * size).all()):
            break
        basis.append(vector / length.sqrt())
        images.append(image / length.sqrt())
        vector = precision @ images[-1]
        vector = vector / vector.square().mean((1, 2), keepdim=True).sqrt()
    if not basis:
        return torch.full_like(error, float("nan")), error
    stacked = torch.cat(images, 2)
    projected = stacked.transpose(1, 2) @ precision @ stacked
    values = torch.linalg.eigvalsh((projected + projected.transpose(1, 2)) / 2)
    worst = (values[:, -1] / values[:, 0].clamp(min=0)).max()
    return worst, error


@torch.no_grad()
def install(
    unit: Unit,
    precision: Tensor,
    mean: Tensor,
    optimizers: Sequence[Optimizer],
    rule: str,
) -> bool:
    """Put in P′ and c′, and let d and the momentum follow.

    Returns:
        False, with nothing changed, if a bias or a momentum would not be finite.
    """
    layer = unit.layer
    assert layer.precision_matrix is not None
    groups, dtype = layer.feature_groups, precision.dtype
    shift = mean.to(dtype) - layer.mean.to(dtype)
    column = shift.unsqueeze(-1)
    written: list[tuple[Tensor, Tensor]] = []
    if unit.centred:
        moved = (layer.canonical_weight(dtype).sum(2) @ column).reshape(-1)
        written += [(bias, bias.to(dtype) + moved) for bias in unit.biases]
    for optimizer in optimizers:
        held = {
            p: value
            for p in unit.parameters
            if torch.is_tensor(value := optimizer.state.get(p, {}).get("momentum_buffer"))
        }
        if rule == "reset" or not held:
            continue
        weight = held.get(unit.weight)
        biases = [(held[b], held[b].to(dtype)) for b in unit.biases if b in held]
        wide = None
        if weight is not None:
            wide = weight_to_canonical(weight.to(dtype), groups, layer.TRANSPOSED)
        if rule == "velocity":
            if wide is not None and unit.centred:
                moved = (wide.sum(2) @ column).reshape(-1)
                written += [(held_, value + moved) for held_, value in biases]
        elif weight is not None and wide is not None:
            rows = wide.flatten(1, 2)
            factor = torch.linalg.cholesky(layer.precision_matrix.to(dtype))
            covector = torch.cholesky_solve(rows.transpose(1, 2), factor).transpose(1, 2)
            if unit.centred and biases:
                total = torch.stack([value for _, value in biases]).sum(0).reshape(groups, -1)
                covector = covector.reshape(wide.shape)
                covector = covector - total[:, :, None, None] * shift[:, None, None, :]
                covector = covector.flatten(1, 2)
            carried = (covector @ precision).reshape(wide.shape)
            written.append((weight, weight_from_canonical(carried, weight.shape, layer.TRANSPOSED)))
    if not all(bool(torch.isfinite(value).all()) for _, value in written):
        return False
    for tensor, value in written:
        tensor.copy_(value)
    if rule == "reset":
        for optimizer in optimizers:
            reset_state(optimizer, unit.parameters)
    for each in unit.layers:
        assert each.precision_matrix is not None
        each.precision_matrix.copy_(precision)
        each.mean.copy_(mean)
    return True

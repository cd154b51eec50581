"""A reparametrisation of a canonical layer: P = (Σ + εI)⁻¹ itself, without a root.

W stays as it is, whatever P is, so nothing here can change the function but d, which takes up the
new mean, d′ = d + Σ_taps W (c′ − c). That is why the parameters' own precision is enough for P.
Momentum in W's coordinates is m = (m_W − m_b cᵀ) P and follows as

    m′ = (m P⁻¹ − m_d (c′ − c)ᵀ) P′   ("gradient")      m′ = m, m_d′ = m_d + Σ_taps m (c′ − c)
    ("velocity").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from prong.conditioning import fixed_signs
from prong.layout import weight_from_canonical, weight_to_canonical
from prong.momentum import reset_state
from prong.natural import inner, times
from prong.refresh import FALLBACKS, Outcome, Whitening, group_damping
from prong.roots import TOLERANCE, RootFailure, damped, whitening_root

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import Tensor
    from torch.optim import Optimizer

    from prong.moments import Moments
    from prong.units import Unit
    from prong.whitened import Whitened

_PROBES = 4
_FIRST = 32
_SPARE = 8
_SHARE = 3  # With more than in/3 directions, 2 k products an input row cost about what P does.
_BEFORE = 4
_AFTER = 2  # C is close to I there, and its extremes show at once.
_TINY = 1e4


@dataclass(frozen=True)
class Precision:
    """P, whole or by its leading directions; see `natural.times`."""

    matrix: Tensor
    damping: Tensor | None

    @classmethod
    def of(cls, layer: Whitened, dtype: torch.dtype) -> Precision:
        """That of a canonical layer."""
        assert layer.precision_matrix is not None
        damping = layer.precision_damping
        return cls(layer.precision_matrix.to(dtype), None if damping is None else damping.to(dtype))

    def times(self, vectors: Float[Tensor, "groups in n"]) -> Float[Tensor, "groups in n"]:
        """P times columns."""
        return times(vectors.transpose(1, 2), self.matrix, self.damping).transpose(1, 2)

    def root_times(self, vectors: Float[Tensor, "groups in n"]) -> Float[Tensor, "groups in n"]:
        """P^½ times columns, for leading directions."""
        assert self.damping is not None
        gains = self.matrix.square().sum(1).unsqueeze(-1)
        # (1 − √(1 − g)) / g, written so that it is ½ at g = 0.
        part = (self.matrix.transpose(1, 2) @ vectors) / (1 + (1 - gains).clamp(min=0).sqrt())
        return (vectors - self.matrix @ part) * self.damping.rsqrt()[:, None, None]

    def divided(self, rows: Float[Tensor, "groups n in"]) -> Float[Tensor, "groups n in"]:
        """Rows times P⁻¹."""
        if self.damping is None:
            factor = torch.linalg.cholesky(self.matrix)
            return torch.cholesky_solve(rows.transpose(1, 2), factor).transpose(1, 2)
        gains = 1 / (1 - self.matrix.square().sum(1, keepdim=True))
        product = rows + (rows @ self.matrix * gains) @ self.matrix.transpose(1, 2)
        return product * self.damping[:, None, None]


def weight_square(
    rows: Float[Tensor, "groups n in"],
    precision: Precision,
    inverse: Float[Tensor, "groups in in"] | None = None,
) -> Float[Tensor, ""]:
    """tr(X P⁻¹ Xᵀ): ‖V‖² for the rows X of W, ‖g_V‖² for those of the natural gradient.

    Args:
        rows: X.
        precision: P.
        inverse: P⁻¹ of a whole P, if it is at hand; with leading directions it is never needed.
    """
    if precision.damping is None:
        left = precision.divided(rows) if inverse is None else rows @ inverse
        return inner(left, rows)
    gains = 1 / (1 - precision.matrix.square().sum(1))
    squares = rows.square().sum((1, 2)) + ((rows @ precision.matrix).square().sum(1) * gains).sum(1)
    return (precision.damping * squares).sum()


def leading(
    covariance: Float[Tensor, "groups in in"],
    damping: Float[Tensor, " groups"],
    share: float,
    start: Float[Tensor, "groups in k"] | None,
) -> Precision | None:
    """P = (Σ_k + εI)⁻¹, with the k directions of Σ whose eigenvalues exceed `share` · ε.

    Σ_k is what it says, k Ritz pairs of Σ found by subspace iteration: everything after is exact
    for this P. A direction left out, of eigenvalue λ, is scaled by 1/ε instead of 1/(λ + ε).

    Args:
        covariance: Σ.
        damping: ε.
        share: how small an eigenvalue may be left out, in units of ε.
        start: directions of before, which one iteration brings up to date; None for none.

    Returns:
        None where so many directions are needed that P itself is cheaper.
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
    return Precision((basis * gains.sqrt().unsqueeze(1)).contiguous(), damping)


def find_precision(
    unit: Unit, moments: Moments, whitening: Whitening
) -> tuple[Outcome, Precision | None, Tensor]:
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
    covariance = moments.covariance() if unit.centred else moments.second_moment(mean)
    matrix = damped(covariance, damping)
    if not bool(torch.isfinite(matrix).all()):
        outcome.put(reason=2, fallback=3)
        return outcome, None, mean
    old = Precision.of(layer, matrix.dtype)
    shift = moments.mean - layer.mean.to(mean.dtype)
    frame = Frame(matrix)
    condition, error = fit(old, frame, shift if unit.centred else None)
    outcome.put(condition_before=condition, whitening_error_before=error)
    # A whole P that leading directions may replace is not worth keeping.
    if whitening.refit is not None and (whitening.leading is None or old.damping is not None):
        condition, error = fit(old, frame, None, _AFTER)
        if bool(error <= whitening.refit):
            outcome.put(skipped=1)
    try:
        precision, fallback = old, ""
        if not outcome.skipped:
            precision, fallback = _found(unit, old, covariance, damping, whitening)
    except RootFailure:
        outcome.put(reason=2, fallback=3)
        return outcome, None, mean
    if not outcome.skipped:
        condition, error = fit(precision, frame, None, _AFTER)
    outcome.put(condition_after=condition, whitening_error=error)
    if precision.damping is None:
        trace = precision.matrix.diagonal(dim1=1, dim2=2).sum(1)
        dimension = mean.numel() - (damping * trace).sum()
    else:
        dimension = precision.matrix.square().sum()
    outcome.put(
        updated=1,
        fallback=FALLBACKS.index(fallback),
        effective_dimension=dimension,
        damping=damping.mean(),
    )
    return outcome, precision, mean


def _found(
    unit: Unit, old: Precision, covariance: Tensor, damping: Tensor, whitening: Whitening
) -> tuple[Precision, str]:
    """P by its leading directions where they were asked for and are few, else whole."""
    if whitening.leading is not None:
        start = old.matrix if old.damping is not None else None
        few = leading(covariance, damping, whitening.leading, start)
        if few is not None:
            return few, ""
    inverted, fallback = inverse(covariance, damping, whitening.first_dtype(unit))
    return Precision(inverted, None), fallback


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


class Frame:
    """Σ + εI about the samples' own mean, factored once, and only if somebody asks for it."""

    def __init__(self, matrix: Float[Tensor, "groups in in"]) -> None:
        """Hold the matrix."""
        self.matrix = matrix

    @cached_property
    def factor(self) -> Float[Tensor, "groups in in"]:
        """L with L Lᵀ = Σ + εI; not finite where there is none."""
        factor, info = torch.linalg.cholesky_ex(self.matrix)
        return torch.where((info == 0)[:, None, None], factor, torch.nan)


def fit(
    precision: Precision,
    frame: Frame,
    shift: Float[Tensor, "groups in"] | None,
    blocks: int = _BEFORE,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Condition number and whitening error of C = U A Uᵀ, from P = UᵀU by products with vectors.

    With A = Σ + εI + shift shiftᵀ. Leading directions give the symmetric U = P^½ at once. A whole P
    takes A = K Kᵀ instead, K = [L, shift], and the symmetric Kᵀ P K with C's eigenvalues: K has one
    column more than C, and so Kᵀ P K one eigenvalue 0 more, which does not count. Lanczos' method
    bounds the extremes from inside, and probes estimate ‖C − I‖²_F = tr (C − I)².

    Args:
        precision: P.
        frame: Σ + εI.
        shift: the samples' mean minus c, or None for none.
        blocks: products of C with as many vectors as there are probes; more bring the bound closer.

    Returns:
        The condition number (a lower bound; the worst of the groups) and ‖C − I‖_F/√in; not a
        number where Σ + εI has no factor.
    """
    size = frame.matrix.shape[1]
    basis: list[Tensor] = []
    if precision.damping is not None:
        columns = size

        def operator(vectors: Tensor) -> Tensor:
            rooted = precision.root_times(vectors)
            product = frame.matrix @ rooted
            if shift is not None:
                product = product + shift.unsqueeze(-1) * (shift.unsqueeze(1) @ rooted)
            return precision.root_times(product)
    else:
        wide = frame.factor
        if not bool(torch.isfinite(wide).all()):
            return torch.tensor(torch.nan), torch.tensor(torch.nan)
        if shift is not None:
            null = torch.linalg.solve_triangular(wide, shift.unsqueeze(-1), upper=False)
            null = torch.cat([null, -torch.ones_like(null[:, :1])], 1)
            basis.append(null / torch.linalg.vector_norm(null, dim=1, keepdim=True))
            wide = torch.cat([wide, shift.unsqueeze(-1)], 2)
        columns = wide.shape[2]

        def operator(vectors: Tensor) -> Tensor:
            return wide.transpose(1, 2) @ precision.times(wide @ vectors)

    return _spectrum(operator, len(precision.matrix), size, columns, basis, frame.matrix, blocks)


def _spectrum(
    operator: Callable[[Tensor], Tensor],
    groups: int,
    size: int,
    columns: int,
    basis: list[Tensor],
    like: Tensor,
    blocks: int,
) -> tuple[Tensor, Tensor]:
    """Largest over smallest eigenvalue, and ‖C − I‖_F/√size, off the vectors in `basis`."""
    nothing = len(basis)
    probes = fixed_signs(columns, _PROBES, like.dtype, like.device).expand(groups, -1, -1)
    block, product = probes, operator(probes)
    total = (product - probes).square().sum(1).mean() - nothing
    error = (total.clamp(min=0) / size).sqrt()
    # Block Krylov space, every product with a vector made once: W = C B for an orthonormal B.
    kept = torch.cat(basis, 2) if basis else like.new_zeros(groups, columns, 0)
    images = operator(kept) if basis else kept
    smallest = _TINY * torch.finfo(like.dtype).eps
    for step in range(blocks):
        if kept.shape[2] - nothing >= size:
            break
        block = block[..., : size + nothing - kept.shape[2]]
        for _ in range(2):  # Once would leave rounding errors that look like new directions.
            block = block - kept @ (kept.transpose(1, 2) @ block)
        before = torch.linalg.vector_norm(block, dim=1).amax()
        block, corner = torch.linalg.qr(block)
        found = corner.diagonal(dim1=1, dim2=2).abs().amin(0) > smallest * before
        block = block[..., found] if before > 0 else block[..., :0]
        if not block.shape[2]:
            break
        if step or nothing or block.shape[2] < product.shape[2]:
            block = block - kept @ (kept.transpose(1, 2) @ block)
            image = operator(block)
        else:  # The probes themselves: their product is known.
            image = torch.linalg.solve_triangular(corner, product, upper=True, left=False)
        kept, images = torch.cat([kept, block], 2), torch.cat([images, image], 2)
        block = image
    projected = kept[..., nothing:].transpose(1, 2) @ images[..., nothing:]
    values = torch.linalg.eigvalsh((projected + projected.transpose(1, 2)) / 2)
    worst = (values[:, -1] / values[:, 0].clamp(min=0)).max()
    return worst, error


@torch.no_grad()
def install(
    unit: Unit,
    precision: Precision,
    mean: Tensor,
    optimizers: Sequence[Optimizer],
    rule: str,
    *,
    kept: bool = False,
) -> bool:
    """Put in P′ and c′, and let d and the momentum follow; with `kept`, P′ is P.

    Returns:
        False, with nothing changed, if a bias or a momentum would not be finite.
    """
    layer = unit.layer
    assert layer.precision_matrix is not None
    groups, dtype = layer.feature_groups, precision.matrix.dtype
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
            carried = wide
            if not kept:
                covector = Precision.of(layer, dtype).divided(wide.flatten(1, 2))
                carried = times(covector, precision.matrix, precision.damping).reshape(wide.shape)
            if unit.centred and biases:
                total = torch.stack([value for _, value in biases]).sum(0).reshape(groups, -1)
                moved = times(shift.unsqueeze(1), precision.matrix, precision.damping)
                carried = carried - total[:, :, None, None] * moved[:, :, None]
            written.append((weight, weight_from_canonical(carried, weight.shape, layer.TRANSPOSED)))
    if not all(bool(torch.isfinite(value).all()) for _, value in written):
        return False
    for tensor, value in written:
        tensor.copy_(value)
    if rule == "reset":
        for optimizer in optimizers:
            reset_state(optimizer, unit.parameters)
    for each in unit.layers:
        each.put_precision(precision.matrix, precision.damping)
        each.mean.copy_(mean)
    return True

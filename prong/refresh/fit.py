"""Measures of how well P fits a covariance: C = U A Uᵀ, examined by products with vectors."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from prong.linalg.conditioning import fixed_signs
from prong.linalg.preconditioner import LowRank

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

    from prong.linalg.preconditioner import Preconditioner

_PROBES = 4
_BEFORE = 4
AFTER = 2
"""Number of block products if C is close to I, where few are enough for the extreme eigenvalues."""
_TINY = 1e4


class Frame:
    """Σ + εI about the samples' mean, with a Cholesky factor that is computed on first use."""

    def __init__(self, matrix: Float[Tensor, "groups in in"]) -> None:
        """Store the matrix."""
        self.matrix = matrix

    @cached_property
    def factor(self) -> Float[Tensor, "groups in in"]:
        """L with L Lᵀ = Σ + εI; NaN where Σ + εI is not positive definite."""
        factor, info = torch.linalg.cholesky_ex(self.matrix)
        return torch.where((info == 0)[:, None, None], factor, torch.nan)


def fit(
    preconditioner: Preconditioner,
    frame: Frame,
    shift: Float[Tensor, "groups in"] | None,
    blocks: int = _BEFORE,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Estimate the condition number and the whitening error of C = U A Uᵀ, from P = UᵀU.

    Here A = Σ + εI + shift shiftᵀ, and only products with vectors are needed. Leading directions
    give the symmetric U = P^½ directly. With a whole P, let A = K Kᵀ with K = [L, shift]. Then the
    symmetric matrix Kᵀ P K has the eigenvalues of C, and one additional eigenvalue 0 that is left
    out. Lanczos' method gives the extreme eigenvalues from inside the spectrum, and probes estimate
    ‖C − I‖²_F = tr (C − I)².

    Args:
        preconditioner: P.
        frame: Σ + εI.
        shift: the samples' mean minus c, or None if they are equal.
        blocks: number of products of C with a block of `_PROBES` vectors; more give a closer bound.

    Returns:
        The condition number (a lower bound; the maximum over the groups) and ‖C − I‖_F/√in; NaN
        where Σ + εI is not positive definite.
    """
    size = frame.matrix.shape[1]
    basis: list[Tensor] = []
    if isinstance(preconditioner, LowRank):
        columns = size

        def operator(vectors: Tensor) -> Tensor:
            rooted = preconditioner.root_times(vectors)
            product = frame.matrix @ rooted
            if shift is not None:
                product = product + shift.unsqueeze(-1) * (shift.unsqueeze(1) @ rooted)
            return preconditioner.root_times(product)
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
            return wide.transpose(1, 2) @ _columns(preconditioner, wide @ vectors)

    return _spectrum(operator, len(frame.matrix), size, columns, basis, frame.matrix, blocks)


def _columns(preconditioner: Preconditioner, vectors: Tensor) -> Tensor:
    """Return P times columns."""
    return preconditioner.times(vectors.transpose(1, 2)).transpose(1, 2)


def _spectrum(
    operator: Callable[[Tensor], Tensor],
    groups: int,
    size: int,
    columns: int,
    basis: list[Tensor],
    like: Tensor,
    blocks: int,
) -> tuple[Tensor, Tensor]:
    """Largest over smallest eigenvalue and ‖C − I‖_F/√size, orthogonal to `basis`."""
    nothing = len(basis)
    probes = fixed_signs(columns, _PROBES, like.dtype, like.device).expand(groups, -1, -1)
    block, product = probes, operator(probes)
    total = (product - probes).square().sum(1).mean() - nothing
    error = (total.clamp(min=0) / size).sqrt()
    # A block Krylov space with an orthonormal basis B. W = C B is stored, so that each product is
    # computed once.
    kept = torch.cat(basis, 2) if basis else like.new_zeros(groups, columns, 0)
    images = operator(kept) if basis else kept
    smallest = _TINY * torch.finfo(like.dtype).eps
    for step in range(blocks):
        if kept.shape[2] - nothing >= size:
            break
        block = block[..., : size + nothing - kept.shape[2]]
        for _ in range(2):  # After one pass, rounding errors could look like new directions.
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
        else:  # The product with the probes is already known.
            image = torch.linalg.solve_triangular(corner, product, upper=True, left=False)
        kept, images = torch.cat([kept, block], 2), torch.cat([images, image], 2)
        block = image
    projected = kept[..., nothing:].transpose(1, 2) @ images[..., nothing:]
    values = torch.linalg.eigvalsh((projected + projected.transpose(1, 2)) / 2)
    worst = (values[:, -1] / values[:, 0].clamp(min=0)).max()
    return worst, error

"""P = UᵀU = (Σ + εI)⁻¹, as a whole matrix or by the leading directions of Σ.

Let Q_k be the orthonormal eigenvectors of Σ whose eigenvalues λ exceed a given fraction of ε, and
F = Q_k diag(λ/(λ + ε))^½. Then

    P = (Q_k diag(λ) Q_kᵀ + εI)⁻¹ = (I − F Fᵀ)/ε.

Fᵀ F is diagonal with the entries s = λ/(λ + ε). All further results are exact for this P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def times(
    rows: Float[Tensor, "groups rows in"],
    preconditioner: Float[Tensor, "groups in columns"],
    damping: Float[Tensor, " groups"] | None,
) -> Float[Tensor, "groups rows in"]:
    """Multiply rows by P, given by the tensors of a backward pass.

    Args:
        rows: rows of `in` numbers.
        preconditioner: P itself, or the leading directions F if `damping` is given.
        damping: ε of each group, or None where `preconditioner` is P.
    """
    if damping is None:
        return rows @ preconditioner
    rest = rows - (rows @ preconditioner) @ preconditioner.transpose(1, 2)
    return rest / damping[:, None, None]


@dataclass(frozen=True)
class Dense:
    """P as a whole matrix.

    Attributes:
        matrix: P, `[groups, in, in]`, symmetric.
    """

    matrix: Float[Tensor, "groups in in"]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrix."""
        return self.matrix.dtype

    def to(self, dtype: torch.dtype) -> Dense:
        """The same in another type."""
        return Dense(self.matrix.to(dtype))

    def whole(self) -> Float[Tensor, "groups in in"]:
        """P as a matrix."""
        return self.matrix

    def times(self, rows: Float[Tensor, "groups n in"]) -> Float[Tensor, "groups n in"]:
        """Rows times P."""
        return rows @ self.matrix

    def divided(self, rows: Float[Tensor, "groups n in"]) -> Float[Tensor, "groups n in"]:
        """Rows times P⁻¹."""
        factor = torch.linalg.cholesky(self.matrix)
        return torch.cholesky_solve(rows.transpose(1, 2), factor).transpose(1, 2)

    def effective_dimension(self, damping: Float[Tensor, " groups"]) -> Float[Tensor, ""]:
        """Return Σ λ/(λ + ε) = tr(I − εP), summed over all groups."""
        trace = self.matrix.diagonal(dim1=1, dim2=2).sum(1)
        return self.matrix.shape[0] * self.matrix.shape[1] - (damping * trace).sum()


@dataclass(frozen=True)
class LowRank:
    """P by leading directions.

    Attributes:
        directions: F, `[groups, in, k]`.
        damping: ε, `[groups]`.
    """

    directions: Float[Tensor, "groups in k"]
    damping: Float[Tensor, " groups"]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the directions."""
        return self.directions.dtype

    def to(self, dtype: torch.dtype) -> LowRank:
        """The same in another type."""
        return LowRank(self.directions.to(dtype), self.damping.to(dtype))

    def whole(self) -> Float[Tensor, "groups in in"]:
        """P as a matrix."""
        held = self.directions
        identity = torch.eye(held.shape[1], dtype=held.dtype, device=held.device)
        return self.times(identity.expand(len(held), -1, -1))

    def times(self, rows: Float[Tensor, "groups n in"]) -> Float[Tensor, "groups n in"]:
        """Rows times P."""
        return times(rows, self.directions, self.damping)

    def root_times(self, columns: Float[Tensor, "groups in n"]) -> Float[Tensor, "groups in n"]:
        """Return P^½ times columns."""
        gains = self.directions.square().sum(1).unsqueeze(-1)
        # (1 − √(1 − s)) / s, in a form that is ½ at s = 0.
        part = self.directions.transpose(1, 2) @ columns
        part = part / (1 + (1 - gains).clamp(min=0).sqrt())
        return (columns - self.directions @ part) * self.damping.rsqrt()[:, None, None]

    def divided(self, rows: Float[Tensor, "groups n in"]) -> Float[Tensor, "groups n in"]:
        """Rows times P⁻¹."""
        gains = 1 / (1 - self.directions.square().sum(1, keepdim=True))
        product = rows + (rows @ self.directions * gains) @ self.directions.transpose(1, 2)
        return product * self.damping[:, None, None]

    def effective_dimension(self, damping: Float[Tensor, " groups"]) -> Float[Tensor, ""]:
        """Return Σ λ/(λ + ε) over the directions of all groups."""
        dimension: Tensor = self.directions.square().sum()
        return dimension


Preconditioner = Dense | LowRank


def preconditioner_of(
    matrix: Float[Tensor, "groups in columns"], damping: Float[Tensor, " groups"] | None
) -> Preconditioner:
    """Create P from the two tensors of a layer or of a backward pass.

    Args:
        matrix: P where `damping` is None, else F.
        damping: ε of leading directions.
    """
    return Dense(matrix) if damping is None else LowRank(matrix, damping)


def weight_square(
    rows: Float[Tensor, "groups n in"],
    preconditioner: Preconditioner,
    inverse: Float[Tensor, "groups in in"] | None = None,
) -> Float[Tensor, ""]:
    """Return tr(X P⁻¹ Xᵀ): ‖V‖² for the rows X of W, ‖g_V‖² for those of the natural gradient.

    Args:
        rows: X.
        preconditioner: P.
        inverse: P⁻¹ of a whole P, if it is known; it is not needed with leading directions.
    """
    if isinstance(preconditioner, Dense):
        left = preconditioner.divided(rows) if inverse is None else rows @ inverse
        return inner(left, rows)
    gains = 1 / (1 - preconditioner.directions.square().sum(1))
    leading = (rows @ preconditioner.directions).square().sum(1)
    squares = rows.square().sum((1, 2)) + (leading * gains).sum(1)
    return (preconditioner.damping * squares).sum()


def inner(left: Tensor, right: Tensor) -> Float[Tensor, ""]:
    """Return ⟨left, right⟩ over all entries, in float32 or wider."""
    dtype = torch.promote_types(left.dtype, torch.float32)
    return torch.dot(left.to(dtype).reshape(-1), right.to(dtype).reshape(-1))

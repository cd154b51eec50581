"""Measures of a layer's whiteness: condition number of C = U A Uᵀ and its distance from I.

A is the damped second moment of the input. Up to `EXACT` features, C is formed and decomposed. With
more features this would cost more than the reparametrisation itself. Then both numbers are
estimated from products with vectors: ‖C − I‖_F by Hutchinson's estimator over fixed probes, and the
extreme eigenvalues by power iteration on C and on C⁻¹.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

EXACT = 256
_PROBES = 32
_ITERATIONS = 40


def whitening_error(covariance: Float[Tensor, "groups in in"]) -> Float[Tensor, ""]:
    """‖C − I‖_F/√(features) over all groups: 0 if white, 1 if all features have variance 0."""
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    missed: Tensor = (covariance - identity).square().sum((1, 2)).mean()
    return missed.div(covariance.shape[-1]).sqrt()


def condition_number(matrix: Float[Tensor, "groups in in"]) -> Float[Tensor, ""]:
    """Largest over smallest eigenvalue, the maximum over the groups; inf if one is singular."""
    values = torch.linalg.eigvalsh((matrix + matrix.transpose(1, 2)) / 2)
    smallest = values[:, 0].clamp(min=0)
    worst: Tensor = (values[:, -1] / smallest).max()
    return worst


def solve_left(
    matrix: Float[Tensor, "groups in in"], right: Float[Tensor, "groups in columns"]
) -> Float[Tensor, "groups in columns"]:
    """Solve matrix · X = right; a lower triangular matrix is solved by substitution."""
    if bool((matrix.triu(1) == 0).all()):
        solved: Tensor = torch.linalg.solve_triangular(matrix, right, upper=False)
    else:
        solved = torch.linalg.solve(matrix, right)
    return solved


def fixed_signs(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "rows columns"]:
    """Return pseudorandom signs, equal in every call, so that equal matrices give equal numbers."""
    grid = torch.arange(rows * columns, dtype=torch.int64, device=device)
    mixed = (grid * 2654435761 + 40503) % 4294967291
    mixed = (mixed ^ (mixed >> 13)) * 1274126177 % 4294967291
    return torch.where((mixed >> 9) % 2 == 0, 1.0, -1.0).to(dtype).reshape(rows, columns)


def conditioning(
    whitener: Float[Tensor, "groups in in"], matrix: Float[Tensor, "groups in in"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute the condition number and the whitening error of C = U A Uᵀ.

    Args:
        whitener: U.
        matrix: A, symmetric and positive definite.

    Returns:
        The condition number, the maximum over the groups, and ‖C − I‖_F/√in. An estimated condition
        number is a lower bound, usually within a few per cent.
    """
    size = matrix.shape[-1]
    if size <= EXACT:
        factor = whitener @ matrix @ whitener.transpose(1, 2)
        return condition_number(factor), whitening_error(factor)
    transposed = whitener.transpose(1, 2)
    probes = fixed_signs(size, _PROBES, matrix.dtype, matrix.device).expand(len(matrix), -1, -1)
    missed = whitener @ (matrix @ (transposed @ probes)) - probes
    error = missed.square().mean().sqrt()
    cholesky, info = torch.linalg.cholesky_ex(matrix)
    if bool((info != 0).any()):
        return torch.full_like(error, float("inf")), error
    large = small = probes[..., :1] / size**0.5
    top = bottom = large.new_ones(len(matrix), 1)
    triangular = bool((whitener.triu(1) == 0).all())
    factors = None if triangular else torch.linalg.lu_factor(whitener)
    for _ in range(_ITERATIONS):
        large = whitener @ (matrix @ (transposed @ large))
        if factors is None:
            small = torch.linalg.solve_triangular(whitener, small, upper=False)
            small = torch.cholesky_solve(small, cholesky)
            small = torch.linalg.solve_triangular(transposed, small, upper=True)
        else:
            small = torch.linalg.lu_solve(*factors, small)
            small = torch.cholesky_solve(small, cholesky)
            small = torch.linalg.lu_solve(*factors, small, adjoint=True)
        top, bottom = (torch.linalg.vector_norm(v, dim=1) for v in (large, small))
        large, small = large / top.unsqueeze(1), small / bottom.unsqueeze(1)
    return (top * bottom).max().clamp(min=1), error

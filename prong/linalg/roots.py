"""Square roots of P = (Σ + εI)⁻¹: matrices U with UᵀU = P (Eq. 7 and its alternatives).

Every root gives the same P, and therefore the same path under SGD. The roots differ in cost and in
their basis. The basis matters for optimizers that act on single coordinates (Adam) and for the
per-batch D:

- `pca`: U = diag(λ + ε)^−½ Qᵀ, eigenvectors as rows, largest variance first. The paper's Eq. 7.
- `zca`: U = Q diag(λ + ε)^−½ Qᵀ, the symmetric root.
- `cholesky`: Σ + εI = L Lᵀ, U = L⁻¹. By far the cheapest.
- `newton-schulz`: the symmetric root by matrix products alone (Higham 1997), which are fast on
  accelerators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from prong.linalg.conditioning import fixed_signs
from prong.linalg.dtypes import wide_dtype

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

RootName = Literal["pca", "zca", "cholesky", "newton-schulz"]
ROOTS: tuple[str, ...] = get_args(RootName)

# Largest accepted error of U(Σ + εI)Uᵀ = I (root mean square over the entries of a row). With a
# larger error the next method is tried.
TOLERANCE = 1e-3
_ITERATIONS = 60


class RootFailure(ArithmeticError):
    """A decomposition did not succeed, or its result does not whiten."""


@dataclass(frozen=True)
class Root:
    """A whitening matrix, its inverse, and how it was found.

    Attributes:
        whitener: U, `[groups, in, in]`.
        inverse: U⁻¹.
        fallback: "" if the first attempt succeeded, "float64" if the retry in float64 did, "eigh"
            if only the eigendecomposition with negative eigenvalues set to zero did.
    """

    whitener: Float[Tensor, "groups in in"]
    inverse: Float[Tensor, "groups in in"]
    fallback: str


def spectrum(
    covariance: Float[Tensor, "groups in in"],
) -> tuple[Float[Tensor, "groups in"], Float[Tensor, "groups in in"]]:
    """Return eigenvalues, largest first and not negative, and eigenvectors as *rows*.

    The entry of largest magnitude of every eigenvector is made positive, so that equal covariances
    give equal bases.

    Raises:
        RootFailure: if the eigendecomposition does not converge.
    """
    try:
        values, vectors = torch.linalg.eigh(covariance)
    except RuntimeError as error:  # LinAlgError, or an internal failure of cuSOLVER.
        raise RootFailure(str(error)) from error
    rows = vectors.transpose(1, 2).flip(1)
    largest = rows.abs().argmax(-1, keepdim=True)
    signs = torch.sign(torch.gather(rows, -1, largest))
    return values.flip(1).clamp(min=0), rows * torch.where(signs == 0, 1, signs)


def _pca(covariance: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    values, rows = spectrum(covariance)
    scale = (values + damping[:, None]).sqrt()
    return rows / scale.unsqueeze(-1), rows.transpose(1, 2) * scale.unsqueeze(1)


def _zca(covariance: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    values, rows = spectrum(covariance)
    scale = (values + damping[:, None]).sqrt()
    columns = rows.transpose(1, 2)
    whitener, inverse = (columns / scale.unsqueeze(1)) @ rows, (columns * scale.unsqueeze(1)) @ rows
    return symmetrised(whitener), symmetrised(inverse)


def symmetrised(matrix: Float[Tensor, "groups in in"]) -> Float[Tensor, "groups in in"]:
    """Return the symmetric part, bit-identical to its transpose."""
    return (matrix + matrix.transpose(1, 2)) / 2


def _triangular(covariance: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the lower triangular root where Cholesky's factorisation fails."""
    whitener, _ = _pca(covariance, damping)
    # With J the reversal of order, W J = Q R gives WᵀW = (J R J)ᵀ(J R J), and J R J is lower
    # triangular.
    factor = torch.linalg.qr(whitener.flip(2), mode="r")[1].flip(1, 2)
    signs = torch.sign(factor.diagonal(dim1=1, dim2=2))
    lower = factor * torch.where(signs == 0, 1, signs).unsqueeze(-1)
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return lower, torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)


def damped(
    covariance: Float[Tensor, "groups in in"], damping: Float[Tensor, " groups"]
) -> Float[Tensor, "groups in in"]:
    """Return Σ + εI."""
    result = covariance.clone()
    result.diagonal(dim1=1, dim2=2).add_(damping.to(covariance)[:, None])
    return result


def _cholesky(covariance: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(damped(covariance, damping))
    if bool((info != 0).any()):
        raise RootFailure("the damped covariance is not positive definite")
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    return inverse, factor


def root_of_preconditioner(
    preconditioner: Float[Tensor, "groups in in"],
) -> Float[Tensor, "groups in in"]:
    """Return the lower triangular U with UᵀU = P."""
    # Reversing rows and columns turns P = UᵀU into a Cholesky factorisation L Lᵀ.
    factor = torch.linalg.cholesky(preconditioner.flip(1, 2))
    root: Tensor = factor.flip(1, 2).transpose(1, 2).contiguous()
    return root


def _newton_schulz(covariance: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    matrix = damped(covariance, damping)
    scale = torch.linalg.matrix_norm(matrix)[:, None, None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    root, inverse = matrix / scale, identity.expand_as(matrix).clone()
    limit = 10 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
    previous = float("inf")
    for _ in range(_ITERATIONS):
        product = inverse @ root
        error = float((product - identity).abs().max())
        if error < limit or (error < 1e-4 and error >= previous):
            break
        previous = error
        step = 1.5 * identity - 0.5 * product
        root, inverse = root @ step, step @ inverse
    return symmetrised(inverse / scale.sqrt()), symmetrised(root * scale.sqrt())


_METHODS = {"pca": _pca, "zca": _zca, "cholesky": _cholesky, "newton-schulz": _newton_schulz}
# The last attempt uses eigenvalues, and gives the same root as the first method.
_BY_EIGENVALUES = {"pca": _pca, "zca": _zca, "cholesky": _triangular, "newton-schulz": _zca}


def whitening_root(
    covariance: Float[Tensor, "groups in in"],
    damping: Float[Tensor, " groups"],
    root: str,
    decomposition_dtype: torch.dtype,
) -> Root:
    """Compute U with UᵀU = (Σ + εI)⁻¹, for every group.

    If the attempt in `decomposition_dtype` fails, the method is tried in float64, and then the
    eigendecomposition in float64 on the CPU. In each case "cholesky" gives a lower triangular U,
    and "zca" and "newton-schulz" give a U that is bit-identical to its transpose.

    Args:
        covariance: Σ.
        damping: ε > 0 of each group, in the units of Σ.
        root: one of `ROOTS`.
        decomposition_dtype: type of the first attempt.

    Raises:
        RootFailure: if all attempts fail; the caller then keeps the last good Φ.
    """
    wide = wide_dtype(covariance.device)
    method = _METHODS[root]
    attempts = [("", method, decomposition_dtype, covariance.device)]
    if decomposition_dtype != wide:
        attempts.append(("float64", method, wide, covariance.device))
    attempts.append(("eigh", _BY_EIGENVALUES[root], wide, torch.device("cpu")))
    failure = RootFailure("the covariance is not finite")
    if not bool(torch.isfinite(covariance).all()):
        raise failure
    for fallback, method, dtype, device in attempts:
        matrix, epsilon = covariance.to(device, dtype), damping.to(device, dtype)
        try:
            whitener, inverse = method(matrix, epsilon)
            _check(whitener, damped(matrix, epsilon))
        except RootFailure as error:
            failure = error
            continue
        return Root(whitener.to(covariance), inverse.to(covariance), fallback)
    raise failure


def _check(whitener: Tensor, matrix: Tensor) -> None:
    """Check by a few products with vectors, at a cost of N², that U A Uᵀ is the identity."""
    if not bool(torch.isfinite(whitener).all()):
        raise RootFailure("the whitener is not finite")
    probes = fixed_signs(matrix.shape[-1], 4, matrix.dtype, matrix.device).expand(
        len(matrix), -1, -1
    )
    missed = whitener @ (matrix @ (whitener.transpose(1, 2) @ probes)) - probes
    error = float(missed.square().mean().sqrt())
    if not error <= TOLERANCE:
        raise RootFailure(f"the error of U(Σ + εI)Uᵀ = I is {error:.1e}")


def diagonal_root(covariance: Tensor, damping: Tensor) -> Root:
    """Return U = diag(Σ_ii + ε)^−½: the diagonal version of PRONG (section 3.4)."""
    scale = (
        covariance.diagonal(dim1=1, dim2=2).clamp(min=0) + damping.to(covariance)[:, None]
    ).sqrt()
    if not bool(torch.isfinite(scale).all()):
        raise RootFailure("the variances are not finite")
    return Root(torch.diag_embed(1 / scale), torch.diag_embed(scale), "")

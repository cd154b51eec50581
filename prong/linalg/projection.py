"""The projections P_Φ and P_Φ⁻¹ of Algorithm 1 (lines 7 and 10), and their duals for gradients.

Φ holds c, U and, for two-sided whitening (footnote 4), R. With h the input, a whitened layer
computes

    y = Rᵀ (V U (h − c) + d),   so   W = Rᵀ V U,   b = Rᵀ d − Σ_taps W c,

with R = I in the paper's PRONG. d is multiplied by Rᵀ, so that its Fisher block is whitened like
that of V. All taps of a kernel see the same −c, because the input is padded before it is centred.
Parameters and velocities are *vectors* and follow these equations. Gradients and sums of gradients
are *covectors* and follow the transposed ones,

    g_V = R (g_W − g_b cᵀ) Uᵀ,   g_d = R g_b.

All tensors have the grouped layout: weights `[groups, out, taps, in]`, biases `[groups, out]`.
"Canonical" means the parameters (W, b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prong.linalg.conditioning import solve_left

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Phi:
    """The whitening coefficients Φ of one layer, with the inverses if they are known.

    Attributes:
        mean: c, `[groups, in]`.
        whitener: U, `[groups, in, in]`, one whitened unit per *row*.
        inverse: U⁻¹ if known.
        output: R, `[groups, out, out]`, or None for R = I.
        output_inverse: R⁻¹ if known.
    """

    mean: Float[Tensor, "groups in"]
    whitener: Float[Tensor, "groups in in"]
    inverse: Float[Tensor, "groups in in"] | None = None
    output: Float[Tensor, "groups out out"] | None = None
    output_inverse: Float[Tensor, "groups out out"] | None = None

    def divided(
        self, weight: Float[Tensor, "groups out taps in"]
    ) -> Float[Tensor, "groups out taps in"]:
        """Return weight · U⁻¹ on the `in` axis."""
        if self.inverse is not None:
            return _right(weight, self.inverse)
        solved: Tensor
        # Solve X U = weight in transposed form, so that a triangular U is solved by substitution.
        flat = weight.flatten(1, 2)
        if bool((self.whitener.triu(1) == 0).all()):
            solved = torch.linalg.solve_triangular(self.whitener, flat, upper=False, left=False)
        else:
            solved = torch.linalg.solve(self.whitener, flat, left=False)
        return solved.reshape(weight.shape)

    def divided_by_transpose(
        self, weight: Float[Tensor, "groups out taps in"]
    ) -> Float[Tensor, "groups out taps in"]:
        """Return weight · U⁻ᵀ on the `in` axis."""
        if self.inverse is not None:
            return _right(weight, self.inverse.transpose(1, 2))
        solved = solve_left(self.whitener, weight.flatten(1, 2).transpose(1, 2))
        return solved.transpose(1, 2).reshape(weight.shape)

    def left_inverse(self) -> Float[Tensor, "groups out out"] | None:
        """Return R⁻¹, and compute it if it is not known; None for R = I."""
        if self.output is None:
            return None
        return torch.linalg.inv(self.output) if self.output_inverse is None else self.output_inverse


def _right(
    weight: Float[Tensor, "groups out taps in"], matrix: Float[Tensor, "groups in in"]
) -> Float[Tensor, "groups out taps in"]:
    """Return weight · matrix on the `in` axis."""
    return (weight.flatten(1, 2) @ matrix).reshape(weight.shape)


def _left(
    matrix: Float[Tensor, "groups out out"] | None, array: Float[Tensor, "groups out ..."]
) -> Float[Tensor, "groups out ..."]:
    """Return matrix · array on the `out` axis; the array itself for None."""
    if matrix is None:
        return array
    return (matrix @ array.reshape(*array.shape[:2], -1)).reshape(array.shape)


def _transposed(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix.transpose(-1, -2)


def _shift(
    weight: Float[Tensor, "groups out taps in"], mean: Float[Tensor, "groups in"]
) -> Float[Tensor, "groups out"]:
    """Return Σ_taps W c, the constant that centring subtracts from every output."""
    return (weight.sum(2) @ mean.unsqueeze(-1)).squeeze(-1)


def to_canonical(
    weight: Float[Tensor, "groups out taps in"],
    bias: Float[Tensor, "groups out"] | None,
    phi: Phi,
) -> tuple[Float[Tensor, "groups out taps in"], Float[Tensor, "groups out"] | None]:
    """P_Φ⁻¹: (V, d) → (W, b), line 7 of Algorithm 1. It is linear, so it also maps velocities."""
    canonical = _left(_transposed(phi.output), _right(weight, phi.whitener))
    if bias is None:
        return canonical, None
    outer = _left(_transposed(phi.output), bias)
    return canonical, outer - _shift(canonical, phi.mean)


def from_canonical(
    weight: Float[Tensor, "groups out taps in"],
    bias: Float[Tensor, "groups out"] | None,
    phi: Phi,
) -> tuple[Float[Tensor, "groups out taps in"], Float[Tensor, "groups out"] | None]:
    """P_Φ: (W, b) → (V, d), line 10 of Algorithm 1 with V = R⁻ᵀ W U⁻¹."""
    unwhitened = _transposed(phi.left_inverse())
    whitened = _left(unwhitened, phi.divided(weight))
    if bias is None:
        return whitened, None
    return whitened, _left(unwhitened, bias + _shift(weight, phi.mean))


def gradient_to_canonical(
    weight: Float[Tensor, "groups out taps in"],
    bias: Float[Tensor, "groups out"] | None,
    phi: Phi,
) -> tuple[Float[Tensor, "groups out taps in"], Float[Tensor, "groups out"] | None]:
    """(g_V, g_d) → (g_W, g_b), the inverse of `gradient_from_canonical`."""
    inverse = phi.left_inverse()
    gradient = _left(inverse, phi.divided_by_transpose(weight))
    if bias is None:
        return gradient, None
    outer = _left(inverse, bias)
    return gradient + outer[:, :, None, None] * phi.mean[:, None, None, :], outer


def gradient_from_canonical(
    weight: Float[Tensor, "groups out taps in"],
    bias: Float[Tensor, "groups out"] | None,
    phi: Phi,
) -> tuple[Float[Tensor, "groups out taps in"], Float[Tensor, "groups out"] | None]:
    """(g_W, g_b) → (g_V, g_d): g_V = R (g_W − g_b cᵀ) Uᵀ, g_d = R g_b."""
    centred = weight
    if bias is not None:
        centred = weight - bias[:, :, None, None] * phi.mean[:, None, None, :]
    gradient = _left(phi.output, _right(centred, phi.whitener.transpose(-1, -2)))
    return gradient, None if bias is None else _left(phi.output, bias)

"""Triangles of square matrices as dense blocks of N(N + 1)/2 instead of N² numbers.

The upper triangle of an N × N matrix fills a rectangle of h = ⌈N/2⌉ rows. Its first h rows are on
the right of the rectangle. The remaining triangle is transposed and put into the free corner. All
numbers are copied without rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def triangle_size(size: int) -> int:
    """Return N(N + 1)/2."""
    return size * (size + 1) // 2


def pack_upper(matrix: Float[Tensor, "groups in in"]) -> Float[Tensor, "groups packed"]:
    """Pack the upper triangle with the diagonal; the numbers below the diagonal are ignored.

    Args:
        matrix: square matrices, in any memory layout.
    """
    groups, size = matrix.shape[:2]
    rows, even = -(-size // 2), 1 - size % 2
    packed = matrix.new_empty(groups, rows, size + even)
    packed[:, :, even:] = matrix[:, :rows]
    corner = _corner(packed, size)
    rest = matrix[:, rows:, rows:].transpose(1, 2)
    corner.copy_(torch.where(_lower(rest.shape[1], matrix.device), rest, corner))
    return packed.flatten(1)


def unpack_upper(
    packed: Float[Tensor, "groups packed"], size: int, *, symmetric: bool
) -> Float[Tensor, "groups in in"]:
    """Restore the matrix from its packed upper triangle.

    Args:
        packed: a result of `pack_upper`.
        size: N.
        symmetric: True mirrors the upper triangle into the lower one; else the lower one is zero.
    """
    rows, even = -(-size // 2), 1 - size % 2
    packed = packed.reshape(len(packed), rows, size + even)
    matrix = packed.new_empty(len(packed), size, size)
    matrix[:, :rows] = packed[:, :, even:]
    matrix[:, rows:, rows:] = _corner(packed, size).transpose(1, 2)
    if symmetric:
        matrix[:, rows:, :rows] = matrix[:, :rows, rows:].transpose(1, 2)
    else:
        matrix[:, rows:, :rows] = 0
    for block in (matrix[:, :rows, :rows], matrix[:, rows:, rows:]):
        mirrored = block.transpose(1, 2) if symmetric else torch.zeros_like(block)
        strictly = ~_lower(block.shape[1], block.device).T
        block.copy_(torch.where(strictly, mirrored, block))
    return matrix


def _corner(packed: Tensor, size: int) -> Tensor:
    """Return the square that holds the second triangle, on and below its diagonal."""
    odd, held = size % 2, size // 2
    return packed[:, odd:, :held]


def _lower(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril_()

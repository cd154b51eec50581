"""Variances of whitened units over the batches of one step, for the per-batch diagonal D."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class UnitVariances:
    """Count, sum and sum of squares of z = U(h − c) over one optimizer step's batches.

    z has mean near 0 and variance near 1, so plain sums suffer no cancellation.

    Attributes:
        count: number of samples, `[1]`.
        total: Σ z, `[groups, in]`.
        squares: Σ z², `[groups, in]`.
    """

    def __init__(self, like: Float[Tensor, "groups in"]) -> None:
        """Start from no samples, with sums shaped like a layer's mean."""
        self.count = torch.zeros(1, dtype=like.dtype, device=like.device)
        self.total = torch.zeros_like(like)
        self.squares = torch.zeros_like(like)

    @torch.no_grad()
    def add(
        self,
        samples: Float[Tensor, "groups samples in"],
        mean: Float[Tensor, "groups in"],
        whitener: Float[Tensor, "groups in in"],
    ) -> None:
        """Add a batch; a batch with a NaN or an infinity is left out.

        Args:
            samples: the batch in the grouped layout.
            mean: c.
            whitener: U.
        """
        if samples.shape[1] == 0:
            return
        with torch.autocast(samples.device.type, enabled=False):
            centred = samples.detach().to(whitener.dtype) - mean.unsqueeze(1)
            units = centred @ whitener.transpose(1, 2)
            squares = units.square().sum(1)
            good = torch.isfinite(squares).all()
            self.total.add_(torch.where(good, units.sum(1), 0))
            self.squares.add_(torch.where(good, squares, 0))
            self.count.add_(good.to(self.count.dtype) * samples.shape[1])

    def clear(self) -> None:
        """Delete all samples."""
        for tensor in (self.count, self.total, self.squares):
            tensor.zero_()

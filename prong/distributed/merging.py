"""Merging of the ranks' moments, and delivery to the rank that needs them.

With n = Σ n_r and μ = Σ n_r μ_r / n, the centred scatter of all samples is exactly

    S = Σ_r (S_r + n_r (μ_r − μ)(μ_r − μ)ᵀ),

a sum without cancellation. Counts and means are summed on all ranks in one small message. Then each
rank adds the term of its own shift to its scatter, and sends the scatter's triangle to the owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prong.linalg.dtypes import wide_dtype
from prong.linalg.triangle import pack_upper, unpack_upper
from prong.statistics.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from prong.distributed.ranks import Pending, Ranks

_COUNTS = 3


def sums(parts: Sequence[Moments]) -> Float[Tensor, " sent"]:
    """Total count, examples, rejected batches and Σ n μ of `parts`, in the device's widest type."""
    dtype = wide_dtype(parts[0].mean.device)
    return torch.stack(
        [
            torch.cat([p.count, p.examples, p.rejected, (p.mean.to(dtype) * p.count).flatten()]).to(
                dtype
            )
            for p in parts
        ]
    ).sum(0)


def scatter_about(
    parts: Sequence[Moments], mean: Float[Tensor, "groups in"], dtype: torch.dtype
) -> Float[Tensor, "groups packed"]:
    """The triangle of Σ (S + n (μ − mean)(μ − mean)ᵀ) over `parts`, in `dtype`."""
    total: Tensor | None = None
    for part in parts:
        shift = part.mean.to(dtype) - mean.to(dtype)
        weighted = shift * part.count.to(dtype)
        moved = torch.addcmul(part.scatter.to(dtype), weighted.unsqueeze(2), shift.unsqueeze(1))
        packed = pack_upper(moved)
        total = packed if total is None else total.add_(packed)
    assert total is not None
    return total


class Merge:
    """The merging of one unit's moments and their transfer to the unit's owner.

    Attributes:
        sums: this rank's counts and weighted means. The caller sums them over the ranks and passes
            the result to `send`.
    """

    def __init__(self, parts: Sequence[Moments], dtype: torch.dtype) -> None:
        """Start from the moments of each layer of the unit; they are merged in `dtype`."""
        self._parts: Sequence[Moments] = parts
        self._shape = parts[0].mean.shape
        self._dtype = dtype
        self._pending: Pending | None = None
        self.sums = sums(parts)

    def send(self, totals: Float[Tensor, " sent"], ranks: Ranks, owner: int) -> None:
        """Start to send the scatter; afterwards the layers' own moments are no longer needed."""
        self.sums = totals
        packed = scatter_about(self._parts, self._mean(), self._dtype)
        self._parts = ()
        self._pending = ranks.reduce(packed, owner)

    def finish(self) -> None:
        """Wait until the message was sent, unless `moments` has already waited for it."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def moments(self) -> Moments:
        """Return the merged moments of all ranks; call it once, on the owner only."""
        assert self._pending is not None
        scatter = unpack_upper(self._pending.wait(), self._shape[1], symmetric=True)
        self._pending = None
        return Moments.of(self.sums[:_COUNTS], self._mean().to(self._dtype), scatter)

    def _mean(self) -> Float[Tensor, "groups in"]:
        total = self.sums[:1].clamp(min=1)
        return (self.sums[_COUNTS:] / total).reshape(self._shape)

"""The momentum's transport of one preconditioned unit, shared out by rows.

A decomposition is not split, and one of the largest layer can be an equal part of all work or more.
The transport of the momentum, m′ = (m P⁻¹ − m_d (c′ − c)ᵀ) P′, treats every row of m by itself. So
where whole units leave the busiest rank with much more than an equal part, several ranks compute
rows of it once they have P′, and all receive the same bits.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from prong.linalg.layout import from_grouped, to_grouped
from prong.linalg.preconditioner import Dense, LowRank
from prong.refresh.optimizer_state import pairs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from prong.distributed.ranks import Pending, Ranks
    from prong.linalg.preconditioner import Preconditioner
    from prong.refresh.state_transport import Pair
    from prong.refresh.tied_layers import TiedLayers


class SharedTransport:
    """One unit's transport by several ranks.

    It is made on every rank before the unit gets its new P and c.
    """

    def __init__(self, unit: TiedLayers, helpers: Sequence[tuple[int, float]]) -> None:
        """Remember the old P and c.

        Args:
            unit: the layers that share P.
            helpers: ranks, and the share of the rows that each computes; the shares' sum is 1.
        """
        held = unit.layer.preconditioner
        assert held is not None
        self._unit, self._helpers = unit, helpers
        self._old: Preconditioner = (
            Dense(held.matrix.clone())
            if isinstance(held, Dense)
            else LowRank(held.directions.clone(), held.damping.clone())
        )
        self._mean = unit.layer.mean.clone()
        self._sent: list[tuple[Pair, torch.Size, list[Pending]]] = []

    @torch.no_grad()
    def start(self, optimizers: Sequence[Optimizer], ranks: Ranks) -> None:
        """Compute this rank's rows, and start to exchange all; the new P and c are in place."""
        layer = self._unit.layer
        new = layer.preconditioner
        assert new is not None
        shift = layer.mean - self._mean
        for pair in pairs_of(optimizers, self._unit):
            if pair.weight is None:
                continue
            wide = to_grouped(pair.weight.to(new.dtype), layer.feature_groups, layer.TRANSPOSED)
            rows = wide.flatten(1, 2)
            total = _bias_momentum(pair, self._unit, wide)
            moved = new.times(shift.to(new.dtype).unsqueeze(1))
            pending = []
            for (helper, _), (begin, end) in zip(
                self._helpers, boundaries(self._helpers, rows.shape[1]), strict=True
            ):
                if begin == end:
                    continue  # fewer rows than helpers
                if helper == ranks.index:
                    piece = new.times(self._old.to(new.dtype).divided(rows[:, begin:end]))
                    if total is not None:
                        piece = piece - total[:, begin:end] * moved
                    piece = piece.contiguous()
                else:
                    piece = rows.new_empty(rows.shape[0], end - begin, rows.shape[2])
                pending.append(ranks.broadcast(piece, helper))
            self._sent.append((pair, wide.shape, pending))

    @torch.no_grad()
    def finish(self) -> None:
        """Wait for all rows, and write them; a momentum that is not finite begins at zero."""
        for pair, shape, pending in self._sent:
            rows = torch.cat([piece.wait() for piece in pending], 1)
            if not bool(torch.isfinite(rows).all()):  # the same on every rank
                rows = torch.zeros_like(rows)
            assert pair.weight is not None
            transposed = self._unit.layer.TRANSPOSED
            pair.weight.copy_(from_grouped(rows.reshape(shape), pair.weight.shape, transposed))
        self._sent.clear()


def boundaries(helpers: Sequence[tuple[int, float]], rows: int) -> list[tuple[int, int]]:
    """Return where each helper's rows begin and end.

    Args:
        helpers: ranks, and the share of each; the shares' sum is 1.
        rows: number of rows.
    """
    ends, done = [0], 0.0
    for _, share in helpers:
        done += share
        ends.append(min(rows, round(done * rows)))
    ends[-1] = rows
    return list(pairwise(ends))


def _bias_momentum(pair: Pair, unit: TiedLayers, wide: Tensor) -> Tensor | None:
    """Return m_d for each row of m, `[groups, rows, 1]`; None without biases that move."""
    present = [value.to(wide.dtype) for value in pair.partners if value is not None]
    if not (unit.centred and present):
        return None
    total = torch.stack(present).sum(0).reshape(wide.shape[0], -1)
    return total[:, :, None].expand(-1, -1, wide.shape[2]).reshape(wide.shape[0], -1, 1)

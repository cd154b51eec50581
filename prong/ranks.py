"""The processes that train together; alone, every collective is a no-op."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist

from prong.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


class Ranks:
    """One process group, or a single process.

    Args:
        group: the group whose ranks share the statistics; the default group if None.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Remember the group; whether there is one is asked at every use."""
        self.group = group

    @property
    def size(self) -> int:
        """Number of ranks; 1 without an initialised process group."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.group)

    @property
    def first(self) -> bool:
        """Whether this process is the group's first rank, which decides for all."""
        return self.size == 1 or dist.get_rank(self.group) == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the first rank's bytes, in place."""
        if self.size == 1:
            return
        source = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        for tensor in tensors:
            if tensor.is_contiguous():
                dist.broadcast(tensor, source, group=self.group)
            else:
                copy = tensor.contiguous()
                dist.broadcast(copy, source, group=self.group)
                tensor.copy_(copy)

    def merge_(self, moments: Moments) -> None:
        """Replace every rank's moments by those of all samples together, exactly."""
        if self.size == 1:
            return
        count = moments.count.clone()
        for tensor in (moments.count, moments.examples, moments.rejected):
            self.sum_(tensor)
        total = moments.count.clamp(min=1)
        mean = self.sum_(moments.mean * (count / total).to(moments.mean.dtype))
        shift = moments.mean - mean
        moments.scatter += shift.unsqueeze(2) * shift.unsqueeze(1) * count.to(moments.scatter.dtype)
        self.sum_(moments.scatter)
        moments.mean.copy_(mean)

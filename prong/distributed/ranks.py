"""The processes that train together; with a single process every collective does nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


class Pending:
    """A collective that is in progress; it keeps a reference to the tensor in transfer."""

    def __init__(self, tensor: Tensor, work: dist.Work | None) -> None:
        """Store the tensor, and the work to wait for (None if it is complete)."""
        self._tensor, self._work = tensor, work

    def wait(self) -> Tensor:
        """Wait for the collective, and return its tensor, which may then be read or overwritten."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._tensor


class Ranks:
    """One process group, or a single process.

    Every rank must call the same methods in the same order, with contiguous tensors.

    Args:
        group: the group whose ranks share the statistics; the default group if None.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Store the group; it need not be initialised before the first collective."""
        self.group = group

    def __deepcopy__(self, memo: object) -> Ranks:
        """Refer to the same process group, because a group cannot be copied."""
        return Ranks(self.group)

    @property
    def size(self) -> int:
        """Number of ranks; 1 without an initialised process group."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.group)

    @property
    def index(self) -> int:
        """Rank of this process in the group; 0 without an initialised process group."""
        return 0 if self.size == 1 else dist.get_rank(self.group)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def reduce(self, tensor: Tensor, owner: int) -> Pending:
        """Start a sum into the owner's tensor; the other ranks' tensors are then undefined."""
        if self.size == 1:
            return Pending(tensor, None)
        return Pending(
            tensor, dist.reduce(tensor, group=self.group, group_dst=owner, async_op=True)
        )

    def broadcast(self, tensor: Tensor, owner: int) -> Pending:
        """Start to copy the owner's tensor into every rank's tensor, in place."""
        if self.size == 1:
            return Pending(tensor, None)
        return Pending(
            tensor, dist.broadcast(tensor, group=self.group, group_src=owner, async_op=True)
        )

    def broadcast_(self, tensors: Iterable[Tensor], owner: int = 0) -> None:
        """Copy the owner's tensors into every rank's tensors, in place, and wait."""
        if self.size == 1:
            return
        for tensor in tensors:
            copy = self.broadcast(tensor.contiguous(), owner).wait()
            if copy is not tensor:
                tensor.copy_(copy)

    def gathered(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, stacked by rank, `[ranks, *shape]`."""
        if self.size == 1:
            return tensor.unsqueeze(0)
        result = tensor.new_empty(self.size, *tensor.shape)
        dist.all_gather(list(result.unbind()), tensor, group=self.group)
        return result

    def together(self, values: list[float], device: torch.device) -> list[float]:
        """Sum a few numbers over the ranks; the sums must be exact in float64."""
        if self.size == 1:
            return values
        dtype = torch.float32 if device.type == "mps" else torch.float64
        summed: list[float] = self.sum_(torch.tensor(values, dtype=dtype, device=device)).tolist()
        return summed

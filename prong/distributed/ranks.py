"""The processes that train together; alone, every collective is a no-op."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


class Pending:
    """A collective under way; it holds on to the tensor that is being sent or received."""

    def __init__(self, tensor: Tensor, work: dist.Work | None) -> None:
        """Remember what to wait for."""
        self._tensor, self._work = tensor, work

    def wait(self) -> Tensor:
        """The tensor, once it may be read or overwritten."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._tensor


class Ranks:
    """One process group, or a single process.

    Every rank must call the same methods in the same order; what is sent must be contiguous.

    Args:
        group: the group whose ranks share the statistics; the default group if None.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Remember the group; whether there is one is asked at every use."""
        self.group = group

    def __deepcopy__(self, memo: object) -> Ranks:
        """The same processes: a group cannot be copied, and a model that is copied knows it."""
        return Ranks(self.group)

    @property
    def size(self) -> int:
        """Number of ranks; 1 without an initialised process group."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.group)

    @property
    def index(self) -> int:
        """This process's place in the group; 0 alone."""
        return 0 if self.size == 1 else dist.get_rank(self.group)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def reduce(self, tensor: Tensor, owner: int) -> Pending:
        """Start a sum over the ranks in the owner's tensor; the others' is spent."""
        if self.size == 1:
            return Pending(tensor, None)
        return Pending(
            tensor, dist.reduce(tensor, group=self.group, group_dst=owner, async_op=True)
        )

    def broadcast(self, tensor: Tensor, owner: int) -> Pending:
        """Start to give every rank the owner's bytes, in place."""
        if self.size == 1:
            return Pending(tensor, None)
        return Pending(
            tensor, dist.broadcast(tensor, group=self.group, group_src=owner, async_op=True)
        )

    def broadcast_(self, tensors: Iterable[Tensor], owner: int = 0) -> None:
        """Give every rank the owner's bytes, in place, and wait."""
        if self.size == 1:
            return
        for tensor in tensors:
            copy = self.broadcast(tensor.contiguous(), owner).wait()
            if copy is not tensor:
                tensor.copy_(copy)

    def gathered(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, stacked in the order of the ranks, `[ranks, *shape]`."""
        if self.size == 1:
            return tensor.unsqueeze(0)
        result = tensor.new_empty(self.size, *tensor.shape)
        dist.all_gather(list(result.unbind()), tensor, group=self.group)
        return result

    def together(self, values: list[float], device: torch.device) -> list[float]:
        """Sums over the ranks of a few numbers that a float64 holds exactly."""
        if self.size == 1:
            return values
        dtype = torch.float32 if device.type == "mps" else torch.float64
        summed: list[float] = self.sum_(torch.tensor(values, dtype=dtype, device=device)).tolist()
        return summed

"""Several ranks as one: the process group under torchrun, sums of gradients and of counts.

With one rank every collective is a no-op, so the loop reads the same for one process and many.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process among its peers.

    Attributes:
        rank: Position, from 0.
        size: Number of processes.
        device: Where this rank computes.
    """

    rank: int
    size: int
    device: torch.device

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over all ranks and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks, in one flat transfer of fixed order."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.sum_(torch.cat([g.reshape(-1) for g in gradients]))
        for gradient, part in zip(
            gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def average_buffers(self, network: nn.Module) -> None:
        """Average the running statistics of batch normalisation over ranks."""
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for buffer in (module.running_mean, module.running_var):
                    if buffer is not None:
                        self.sum_(buffer).div_(self.size)


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun set up; leave it at the end.

    Args:
        device: `cpu` or `cuda`; with `cuda` each rank takes the device of its local rank.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device(device)
    if device == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if size == 1:
        yield Ranks(0, 1, place)
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Ranks(rank, size, place)
    finally:
        dist.destroy_process_group()

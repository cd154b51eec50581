"""Communication of ranks: the process group under torchrun, gradients, sums, and agreement.

With one rank every collective is a no-op, so the loop reads the same for one process and many.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import prong
from pipelines.core.config import TrainConfig


@dataclass(frozen=True)
class TrainingRanks:
    """This rank and the process group.

    Attributes:
        rank: Position, from 0.
        size: Number of processes.
        device: Device of this rank.
        control: The group of all ranks for tensors in CPU memory; None for a single rank.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over all ranks and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest_(self, tensor: Tensor) -> Tensor:
        """Replace a CPU `tensor` by its elementwise maximum over all ranks and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control)
        return tensor

    def told(self, number: int) -> int:
        """Return the first rank's number, ≥ −1, on every rank."""
        return int(self.largest_(torch.tensor([-1 if self.rank else number]))[0])

    def barrier(self) -> None:
        """Return after every rank has called this."""
        self.largest_(torch.zeros(1))

    def parallel(self, network: nn.Module, config: TrainConfig) -> nn.Module:
        """Return the module for training: its backward pass sums the gradients over ranks.

        Batch normalisation is synchronised, in place, if `train.batch_norm` is `synchronised`. The
        sum of one parameter's gradients does not depend on the bucket that it is sent in, so a
        resumed run rounds in the same way as the first one.
        """
        if self.size == 1:
            return network
        if config.batch_norm == "synchronised":
            prong.synchronise_batch_norm(network)
        wrapped = DistributedDataParallel(
            network,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            forward_sync_buffers=False,  # each rank has its own running statistics
            gradient_as_bucket_view=True,
        )
        wrapped.register_comm_hook(None, prong.sum_by_parameter)
        return wrapped

    def average_buffers(self, network: nn.Module) -> None:
        """Average the running statistics of batch normalisation over ranks."""
        if self.size == 1:
            return
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for buffer in (module.running_mean, module.running_var):
                    if buffer is not None:
                        self.sum_(buffer).div_(self.size)


def unreduced(network: nn.Module) -> AbstractContextManager[None]:
    """Sum gradients in this rank only: for all parts of a batch except the last (`no_sync`)."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


@contextmanager
def ranks(device: str, timeout: float) -> Iterator[TrainingRanks]:
    """Join the process group that torchrun set up; leave it at the end.

    After an exception the group is not left, because that would wait for ranks that have ended.

    Args:
        device: `cpu` or `cuda`; with `cuda` each rank takes the device of its local rank.
        timeout: Seconds that a collective may take.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device(device)
    if device == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if size == 1:
        yield TrainingRanks(0, 1, place)
        return
    limit = timedelta(seconds=timeout)
    if device == "cuda":
        dist.init_process_group("nccl", timeout=limit, device_id=place)
    else:
        dist.init_process_group("gloo", timeout=limit)
    yield TrainingRanks(rank, size, place, dist.new_group(backend="gloo", timeout=limit))
    dist.destroy_process_group()

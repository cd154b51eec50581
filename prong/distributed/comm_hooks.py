"""Communication hooks that reduce gradients parameter by parameter, for bit-identical resumption.

DistributedDataParallel reduces gradients in buckets. After the first backward pass it rebuilds the
buckets in the order in which the gradients arrived. With three or more ranks, the order of a ring's
additions depends on an element's place in its bucket. A resumed run has the first buckets again, so
it differs from the uninterrupted run by rounding. These hooks reduce each parameter's gradient
separately, so its rounding does not depend on the buckets.

    ddp.register_comm_hook(None, prong.mean_by_parameter)
"""

# No `from __future__ import annotations`: DistributedDataParallel compares a hook's annotations
# with the types themselves, and raises an error for strings.

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING or dist.is_available():
    from torch._C._distributed_c10d import GradBucket
    from torch.distributed import ProcessGroup
else:  # This torch has no DistributedDataParallel, but prong can still be imported.
    GradBucket = ProcessGroup = object


def sum_by_parameter(
    group: ProcessGroup | None, bucket: GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Sum each parameter's gradient over the ranks, for a loss that is a sum or sample-weighted.

    Args:
        group: the ranks, the default group if None; what `register_comm_hook` was given as state.
        bucket: gradients that are ready, in whatever order.

    Returns:
        A future of the bucket's flat buffer.
    """
    return _reduced(group, bucket)


def mean_by_parameter(
    group: ProcessGroup | None, bucket: GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Average each parameter's gradient over the ranks, as DistributedDataParallel does by itself.

    Args:
        group: the ranks, the default group if None; what `register_comm_hook` was given as state.
        bucket: gradients that are ready, in whatever order.

    Returns:
        A future of the bucket's flat buffer.
    """
    bucket.buffer().div_(dist.get_world_size(group))
    return _reduced(group, bucket)


def _reduced(group: ProcessGroup | None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    # Start every collective here, in the bucket's order, which is the same on all ranks. In a
    # callback their order would depend on the scheduling of threads.
    pending = [
        dist.all_reduce(gradient, group=group, async_op=True).get_future()
        for gradient in bucket.gradients()
    ]

    def whole(done: torch.futures.Future[Any]) -> torch.Tensor:
        done.value()  # Raises the error of a failed collective.
        for each in pending:
            each.wait()
        return bucket.buffer()

    # An NCCL future completes when its collective is queued, before the device has finished it.
    # Later work waits for the device only through a future that is bound to CUDA streams. The
    # future of `collect_all` is not, so gradients could be read while they are still being summed.
    # The callback of an NCCL future runs on such streams, and waiting for the other futures there
    # makes these streams wait for all collectives.
    if bucket.buffer().is_cuda and pending:
        result: torch.futures.Future[torch.Tensor] = pending[-1].then(whole)
    else:
        result = torch.futures.collect_all(pending).then(whole)
    return result

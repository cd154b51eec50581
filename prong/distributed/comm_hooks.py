"""DistributedDataParallel's gradients summed parameter by parameter, so that bits can be repeated.

DistributedDataParallel reduces gradients in buckets, and rebuilds its buckets after the first
backward pass in the order in which gradients came. From three ranks on, the order in which a ring
adds up an element depends on the element's place in its bucket: a resumed run, whose first pass has
other buckets again, then differs from the uninterrupted one in bits. These hooks reduce every
parameter's gradient by itself, so that its rounding depends on nothing else.

    ddp.register_comm_hook(None, prong.mean_by_parameter)
"""

# No `from __future__ import annotations`: DistributedDataParallel compares a hook's annotations
# with the types themselves, and refuses their names.

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING or dist.is_available():
    from torch._C._distributed_c10d import GradBucket
    from torch.distributed import ProcessGroup
else:  # prong can still be imported; there is nothing to register a hook with
    GradBucket = ProcessGroup = object


def sum_by_parameter(
    group: ProcessGroup | None, bucket: GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Sum each parameter's gradient over the ranks: a loss that is summed, or weighted by samples.

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
    # Every collective is started here, in the bucket's order: started in a callback, their order
    # would be that in which threads happen to run.
    pending = [
        dist.all_reduce(gradient, group=group, async_op=True).get_future()
        for gradient in bucket.gradients()
    ]

    def whole(done: torch.futures.Future[Any]) -> torch.Tensor:
        done.value()  # raises at once what went wrong in one of them
        for each in pending:
            each.wait()
        return bucket.buffer()

    # NCCL's futures are done once their collectives are queued. What follows waits for the device
    # only through futures that know it, and that of `collect_all` does not: the gradients would be
    # read while they are still being summed. In the callback of one of them, on streams that its
    # result is bound to, waiting for the others lets those streams wait.
    if bucket.buffer().is_cuda and pending:
        result: torch.futures.Future[torch.Tensor] = pending[-1].then(whole)
    else:
        result = torch.futures.collect_all(pending).then(whole)
    return result

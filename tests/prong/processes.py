"""Real processes of one group, gloo's or NCCL's, for tests of several ranks.

Without a CUDA device the processes are forked from a server that has imported torch once, since
that import takes longer than most of what they do. CUDA must not be forked: with a device each
process starts by itself.
"""

from __future__ import annotations

import functools
import multiprocessing
import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

IMPORTED_ONCE = ["torch", "torch._dynamo", "pytest", "hypothesis"]


def _start(rank, size, folder, backend, environment, function, arguments):
    os.environ.update(environment)  # that of the test, and not that of the server's start
    torch.set_num_threads(1)
    options = {}
    if backend == "nccl":
        torch.cuda.set_device(rank)
        options["device_id"] = torch.device("cuda", rank)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=rank, world_size=size, **options
    )
    try:
        torch.save(function(rank, size, *arguments), f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run(folder, size, function, *arguments, backend="gloo"):
    """Give what `function(rank, size, *arguments)` returned in each of `size` processes."""
    folder.mkdir()
    mp.start_processes(
        _start,
        (size, str(folder), backend, dict(os.environ), function, arguments),
        nprocs=size,
        start_method=_start_method(),
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


@functools.cache
def _start_method():
    if torch.cuda.is_available():
        return "spawn"
    multiprocessing.set_forkserver_preload(IMPORTED_ONCE)
    return "forkserver"


def groups(sizes):
    """A group of the first n ranks for each size n; every rank must ask."""
    return {n: dist.new_group(list(range(n))) for n in sizes}


def share(total, rank, size):
    """Uneven shares of `total` samples: the last rank has none if there are three or more."""
    cuts = [0, *(total * (i + 1) ** 2 // size**2 for i in range(size))]
    if size > 2:
        cuts[-2] = total
    return slice(cuts[rank], cuts[rank + 1])

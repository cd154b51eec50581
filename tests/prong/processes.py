"""Real processes of one group, gloo's or NCCL's, for tests of several ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _start(rank, size, folder, backend, function, arguments):
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
    mp.start_processes(_start, (size, str(folder), backend, function, arguments), nprocs=size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def groups(sizes):
    """A group of the first n ranks for each size n; every rank must ask."""
    return {n: dist.new_group(list(range(n))) for n in sizes}


def share(total, rank, size):
    """Uneven shares of `total` samples: the last rank has none if there are three or more."""
    cuts = [0, *(total * (i + 1) ** 2 // size**2 for i in range(size))]
    if size > 2:
        cuts[-2] = total
    return slice(cuts[rank], cuts[rank + 1])

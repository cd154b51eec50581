"""How a reparametrisation is shared out over ranks: work, time and bytes of the busiest rank.

python -m benchmarks.sharing --models autoencoder vgg --ranks 1 2 4 8

For every network, mode and number of ranks, real processes of a gloo group, one thread each, take
statistics of their share of a batch and reparametrise. "work" is counted by
prong.distributed.assignment.refresh_cost; the ideal is an equal part of it, or the largest layer
where that is more, since no decomposition is split. Where there are more ranks than processors
their wall-clock times contend, so "CPU s" is the processor time of a rank's own thread during the
reparametrisation: decomposing, packing and unpacking, without waiting. "layers" is the part of it
that LayerReport.seconds gives as wall-clock time. The times are the smallest of some
reparametrisations. Bytes are what one reparametrisation hands to the collectives, beside those of
squares: Σ of every layer to all ranks by all-reduce, and the same results as squares.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import prong
from benchmarks import workloads
from prong.distributed.assignment import Assignment
from prong.refresh.exchange import assignment

MODES = ("preconditioned", "fold")
MODELS = ("autoencoder", "vgg", "tiny")


@dataclass(frozen=True)
class Share:
    """What one rank did in its quickest reparametrisation.

    Attributes:
        cpu: Processor time of its thread, in seconds.
        wall: Wall-clock time until it had everything, in seconds.
        layers: Wall-clock time of the layers that each rank owned, in seconds.
        sent: Bytes handed to collectives.
    """

    cpu: float
    wall: float
    layers: tuple[float, ...]
    sent: int


def natural_of(model: str, mode: str, root: str) -> tuple[nn.Module, prong.Reparametrizer]:
    """Return a whitened network with an optimizer that holds momentum."""
    torch.manual_seed(0)
    net = prong.whiten(workloads.network(model, False))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    natural = prong.Reparametrizer(
        net, optimizer, period=2, samples=10**9, damping=0.1, mode=mode,
        whitening=prong.Whitening(root=root),
        savings=prong.Savings(spread=False, leading=None),
    )  # fmt: skip
    return net, natural


def _rank(
    rank: int, size: int, folder: str, model: str, mode: str, root: str, batch: int, rounds: int
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    sent = [0]
    for name in ("all_reduce", "reduce", "broadcast"):
        original = getattr(dist, name)

        def counted(tensor: Tensor, *rest: object, _call: object = original, **named: object):  # type: ignore[no-untyped-def]
            sent[0] += tensor.numel() * tensor.element_size()
            return _call(tensor, *rest, **named)  # type: ignore[operator]

        setattr(dist, name, counted)
    net, natural = natural_of(model, mode, root)
    work = workloads.random(model, batch)
    shares = []
    for _ in range(rounds + 1):  # The first one warms up.
        net(work.examples[:batch][rank::size])
        natural.gathering.plan(natural.steps)
        dist.barrier()
        sent[0] = 0
        wall, cpu = time.perf_counter(), time.thread_time()
        report = natural.refresh()
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        owned = [0.0] * size
        for layer in report.layers.values():
            assert layer.updated, layer.reason
            owned[layer.rank] += layer.seconds
        shares.append(Share(cpu, wall, tuple(owned), sent[0]))
        natural.gathering.plan(natural.steps)
    torch.save(min(shares[1:], key=lambda share: share.cpu), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def measure(
    model: str, mode: str, root: str, size: int, batch: int, rounds: int
) -> tuple[Assignment, list[Share], int]:
    """Return who owns what, what each rank did, and the bytes that squares would take."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _rank, (size, folder, model, mode, root, batch, rounds), nprocs=size,
            start_method="forkserver",
        )  # fmt: skip
        shares = [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)
        ]
    _, natural = natural_of(model, mode, root)
    squares = 0
    for unit in natural.units:
        groups, features = unit.layer.mean.shape
        numbers = groups * features * features
        # Statistics are folded in float64, and preconditioned layers take P in their own type.
        squares += numbers * (8 if mode == "fold" else 4) + numbers * 4
        squares += 4 * 2 * sum(parameter.numel() for parameter in unit.parameters)
    owners = assignment(natural.units, natural.settings, size)
    return owners, shares, squares if size > 1 else 0


def row(model: str, mode: str, size: int, found: tuple[Assignment, list[Share], int]) -> str:
    """Return one line of the table."""
    owners, shares, squares = found
    total, largest = sum(owners.costs), max(owners.loads)
    cpu = [share.cpu for share in shares]
    wall = max(share.wall for share in shares)
    layers = shares[0].layers
    moved = shares[0].sent
    cells = [
        model, mode, str(size),
        f"{largest / 1e9:.3f}", f"{owners.largest_share:.2f}",
        f"{largest / (total / size):.2f}", f"{largest / owners.ideal:.2f}",
        f"{max(cpu):.3f} ({min(cpu):.3f})", f"{max(layers):.3f} ({min(layers):.3f})",
        f"{wall:.3f}", f"{moved / 1e6:.2f}",
        f"{moved / squares:.2f}" if squares else "–",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(description="How ranks share a reparametrisation.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS[:2]))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--root", default="cholesky", help="of fold")
    parser.add_argument("--batch", type=int, default=64, help="examples, over all ranks")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    # The ranks are forked from a process that imports torch once; none of them uses CUDA.
    multiprocessing.set_forkserver_preload(["torch"])
    print(f"    python -m benchmarks.sharing {shlex.join(given)}".rstrip() + "\n")
    print(
        f"{platform.machine()}, one thread a rank, cpu, torch {torch.__version__}, Python "
        f"{platform.python_version()}; root of fold {asked.root}, float32, batch {asked.batch}\n"
    )
    print(
        "| network | mode | ranks | work of the busiest, 10⁹ multiply-adds | of the whole | "
        "÷ equal part | ÷ ideal | CPU s, busiest (idlest) | layers s, busiest (idlest) | "
        "wall s | MB | ÷ squares |\n|" + "---|" * 12,
        flush=True,
    )
    for model in asked.models:
        for mode in asked.modes:
            for size in asked.ranks:
                found = measure(model, mode, asked.root, size, asked.batch, asked.rounds)
                print(row(model, mode, size, found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How far trainings on several ranks differ from one on a single rank, and from themselves.

python -m benchmarks.agreement --models autoencoder --ranks 2 4 --data FOLDER

Every training sees the same global batches. The difference in the loss is |a − b| / b, of the
batch's loss over all ranks, before the step. "one bit" is a training on one rank whose weights were
changed in their last bit at the start: what float32 makes of any rounding, whoever rounds. Without
a folder that holds the files of MNIST and CIFAR-10 the inputs are random.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import prong
from benchmarks import workloads

METHODS = ("prong+", "prong", "bn", "sgd")
SHOWN = (1, 10, 50, 100, 200)


@dataclass(frozen=True)
class Setting:
    """One training.

    Attributes:
        model: One of `workloads.MODELS`.
        method: One of `METHODS`.
        batch: Images of a step, over all ranks.
        steps: How many.
        lr: Rate after the warm-up of 50 steps.
        damping: ε.
        period: T.
        double: Whether in float64.
        data: Folder of the images, or None.
    """

    model: str
    method: str
    batch: int
    steps: int
    lr: float
    damping: float
    period: int
    double: bool
    data: Path | None


def training(setting: Setting, rank: int, size: int, *, nudged: bool = False) -> list[float]:
    """Return the loss of every batch, over all ranks.

    Args:
        setting: What to train.
        rank: This process.
        size: All processes; more than one have a process group.
        nudged: Whether every weight begins one bit further from zero.
    """
    torch.manual_seed(0)
    dtype = torch.float64 if setting.double else torch.float32
    normalised = setting.method in ("prong+", "bn")
    work = (
        workloads.real(setting.model, setting.data, setting.batch)
        if setting.data
        else workloads.random(setting.model, setting.batch)
    )
    net: nn.Module = workloads.network(setting.model, normalised).to(dtype)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    if nudged:
        with torch.no_grad():
            for weight in net.parameters():
                weight.copy_(torch.nextafter(weight, 2 * weight))
    whitened = setting.method.startswith("prong")
    if whitened:
        prong.whiten(net)
    prong.synchronise_batch_norm(net)
    run = net
    if size > 1:
        run = DistributedDataParallel(net)
        run.register_comm_hook(None, prong.sum_by_parameter)
    optimizer = torch.optim.SGD(net.parameters(), lr=setting.lr, momentum=0.9)
    natural = None
    share = slice(setting.batch * rank // size, setting.batch * (rank + 1) // size)
    generator = torch.Generator().manual_seed(1)
    if whitened:
        natural = prong.Reparametrizer(
            run,
            optimizer,
            period=setting.period,
            samples=2000,
            damping=setting.damping,
            mode="auto",
        )
        first = (work.draw(generator)[0].to(dtype)[share] for _ in range(1000))
        natural.initialize(first)
    losses = []
    generator = torch.Generator().manual_seed(2)
    for step in range(setting.steps):
        optimizer.param_groups[0]["lr"] = setting.lr * min(1.0, (step + 1) / 51)
        x, labels = work.draw(generator)
        x, labels = x.to(dtype)[share], None if labels is None else labels[share]
        loss = workloads.loss(run(x), x, labels) * (len(x) / setting.batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if natural is not None:
            natural.step()
        total = loss.detach().clone()
        if size > 1:
            dist.all_reduce(total)
        losses.append(float(total))
    return losses


def _rank(rank: int, size: int, folder: str, setting: Setting) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    try:
        losses = training(setting, rank, size)
        if rank == 0:
            torch.save(losses, f"{folder}/losses")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def together(setting: Setting, size: int) -> list[float]:
    """Return the losses of a training on several ranks."""
    with tempfile.TemporaryDirectory(prefix="prong-agreement-") as folder:
        mp.start_processes(_rank, (size, folder, setting), nprocs=size)
        losses: list[float] = torch.load(Path(folder) / "losses")
    return losses


def row(name: str, losses: list[float], reference: list[float]) -> str:
    """Return a line of the table."""
    apart = [abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True)]
    cells = [f"{apart[step - 1]:.1e}" for step in SHOWN if step <= len(apart)]
    return f"| {name} | {' | '.join(cells)} | {max(apart):.1e} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each network, method and floating type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=workloads.MODELS, default=["autoencoder"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["prong+", "prong"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, help="prong+, bn and sgd 0.02, prong 0.005 by default")
    parser.add_argument("--damping", type=float, default=0.3)
    parser.add_argument("--period", type=int, default=20)
    parser.add_argument("--float64", action="store_true", help="besides float32")
    parser.add_argument("--data", type=Path, help="folder with the files of MNIST, CIFAR-10")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, gloo, one thread a rank\n")
    for model in asked.models:
        for method in asked.methods:
            for double in (False, True)[: 1 + asked.float64]:
                lr = asked.lr or (0.005 if method == "prong" else 0.02)
                setting = Setting(
                    model, method, asked.batch, asked.steps, lr, asked.damping, asked.period,
                    double, asked.data,
                )  # fmt: skip
                _table(setting, asked.ranks)
    return 0


def _table(setting: Setting, ranks: list[int]) -> None:
    alone = training(setting, 0, 1)
    kind = "float64" if setting.double else "float32"
    shown = [step for step in SHOWN if step <= setting.steps]
    print(
        f"{setting.model}, {setting.method}, lr {setting.lr:g}, {kind}, last loss {alone[-1]:.4g}"
    )
    print(f"| difference at step | {' | '.join(map(str, shown))} | largest |")
    print("|" + " --- |" * (len(shown) + 2))
    for size in ranks:
        print(row(f"{size} ranks", together(setting, size), alone), flush=True)
    print(row("one bit", training(setting, 0, 1, nudged=True), alone) + "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())

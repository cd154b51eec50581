"""What an engine costs, and how a training scales over ranks: measured here, and simulated.

python -m benchmarks.engines scale --model autoencoder
python -m benchmarks.engines overhead PROJECT --engine slurm --nodes 2

`overhead` takes a project whose stage prepare has run and whose params.yaml names a cluster. It
starts the training several times by each engine, and gives the seconds from the submission to the
first step of all ranks; the training is then ended.

`scale` is a simulation. Measured on this machine, with one thread: the decomposition of each layer,
the transport of its momentum, and a gradient of one batch. Stated: the speed of a link and its
latency. The gradient's all-reduce is a ring; Σ goes to its owner by a reduction and Φ from it by a
broadcast, both pipelined trees of log₂ R levels. A rank has the same batch for any number of ranks.
The ideal has no messages, and an equal part of each reparametrisation for every rank.
"""

from __future__ import annotations

import argparse
import math
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import sharing, workloads
from pipelines.core import params_file
from pipelines.core.config import Params
from pipelines.core.errors import Failed, UserError
from pipelines.core.paths import Layout
from pipelines.training import heartbeat
from pipelines.training.engine_choice import LOCAL, engine_of
from pipelines.training.rank import Job
from pipelines.training.submitted import Submission
from pipelines.training.supervision import Machines, supervise
from pipelines.training.training_folder import TrainingFolder
from prong.distributed.assignment import Assignment
from prong.linalg.triangle import triangle_size
from prong.refresh.exchange import assignment
from prong.refresh.solve_preconditioner import inverse

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Link:
    """A network.

    Attributes:
        name: For the table.
        speed: Bytes per second in each direction of a rank's link.
        latency: Seconds of a message.
    """

    name: str
    speed: float
    latency: float


LINKS = (Link("10 Gbit/s Ethernet", 1.25e9, 30e-6), Link("200 Gbit/s InfiniBand", 25e9, 2e-6))


@dataclass(frozen=True)
class Measured:
    """Seconds and bytes of one model, with one thread.

    Attributes:
        decomposition: Seconds of each layer's decomposition.
        transport: Seconds of each layer's momentum.
        gradient: Seconds of a forward and backward pass of one rank's batch.
        parameters: Bytes of all gradients.
        triangles: Bytes of all Σ and all P, as triangles.
    """

    decomposition: tuple[float, ...]
    transport: tuple[float, ...]
    gradient: float
    parameters: int
    triangles: int


def _seconds(work: Callable[[], object], times: int = 3) -> float:
    """Return the processor time of the quickest of some calls."""
    found = []
    for _ in range(times + 1):
        start = time.thread_time()
        work()
        found.append(time.thread_time() - start)
    return min(found[1:])


def measure(model: str, batch: int) -> Measured:
    """Measure one model on this machine; `batch` is that of one rank."""
    torch.set_num_threads(1)
    net, natural = sharing.natural_of(model, "preconditioned", "cholesky")
    decomposition, transport, triangles = [], [], 0
    for unit in natural.units:
        groups, features = unit.layer.mean.shape
        rows = unit.weight.numel() // (groups * features)
        factor = torch.randn(groups, features, 2 * features)
        covariance = factor @ factor.transpose(1, 2) / (2 * features)
        damping = torch.full((groups,), 0.1)
        momentum = torch.randn(groups, rows, features)
        preconditioner, _ = inverse(covariance, damping, torch.float32)

        def moved(m: torch.Tensor = momentum, p: torch.Tensor = preconditioner) -> torch.Tensor:
            held = torch.cholesky_solve(m.transpose(1, 2), torch.linalg.cholesky(p))
            return held.transpose(1, 2) @ p

        def decomposed(
            c: torch.Tensor = covariance, d: torch.Tensor = damping
        ) -> tuple[torch.Tensor, str]:
            return inverse(c, d, torch.float32)

        decomposition.append(_seconds(decomposed))
        transport.append(_seconds(moved))
        triangles += 2 * 4 * groups * triangle_size(features)
    work = workloads.random(model, batch)

    def gradient() -> None:
        net(work.examples[:batch]).square().mean().backward()

    parameters = 4 * sum(parameter.numel() for parameter in net.parameters())
    return Measured(
        tuple(decomposition), tuple(transport), _seconds(gradient), parameters, triangles
    )


def busiest(found: Measured, owners: Assignment) -> tuple[float, float]:
    """Return the seconds of the busiest rank in one reparametrisation, and an equal part."""
    loads = [0.0] * owners.ranks
    for job, owner in enumerate(owners.owners):
        helpers = owners.helpers_of(job)
        loads[owner] += found.decomposition[job]
        for rank, share in helpers or ((owner, 1.0),):
            loads[rank] += share * found.transport[job]
    return max(loads), sum(loads) / owners.ranks


def row(found: Measured, owners: Assignment, link: Link, period: int) -> list[str]:
    """Return the cells of one number of ranks and one link."""
    ranks = owners.ranks
    levels = math.ceil(math.log2(ranks)) if ranks > 1 else 0
    ring = 2 * (ranks - 1) / ranks * found.parameters / link.speed
    reduced = ring + 2 * (ranks - 1) * link.latency
    layers = len(owners.owners)
    moved = found.triangles + 2 * found.parameters  # Σ in; P, V and momentum out
    told = (moved / link.speed if ranks > 1 else 0.0) + 2 * layers * levels * link.latency
    work, equal = busiest(found, owners)
    real = found.gradient + reduced + (work + told) / period
    ideal = found.gradient + equal / period
    counted = max(owners.loads) / (sum(owners.costs) / ranks)
    cells = (work, equal, told, reduced, real, ideal)
    return [
        link.name, str(ranks), f"{counted:.2f}", *(f"{1e3 * cell:.2f}" for cell in cells),
        f"{100 * ideal / real:.0f} %",
    ]  # fmt: skip


def scale(model: str, batch: int, period: int, sizes: Sequence[int]) -> None:
    """Print the simulation's table."""
    found = measure(model, batch)
    print(
        f"{platform.machine()}, one thread, cpu, torch {torch.__version__}; {model}, "
        f"{batch} examples a rank, a reparametrisation every {period} steps\n"
    )
    heads = (
        "link", "ranks", "counted work of the busiest ÷ equal part", "busiest, ms",
        "equal part, ms", "Σ and Φ, ms", "all-reduce, ms", "step, ms", "ideal step, ms",
        "of the ideal",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    _, natural = sharing.natural_of(model, "preconditioned", "cholesky")
    for link in LINKS:
        for size in sizes:
            owners = assignment(natural.units, natural.settings, size)
            print(f"| {' | '.join(row(found, owners, link, period))} |", flush=True)


class _Enough(Exception):
    """All ranks have made a step."""


def first_step(layout: Layout, params: Params, engine: str) -> float:
    """Return the seconds from the submission to the first step of all ranks.

    Raises:
        UserError: If the engine refuses.
        Failed: If the ranks ended before.
    """
    watch, cluster = params.supervision, replace(params.cluster, engine=engine)
    nodes, per_node = watch.nodes, int(params.train.processes)
    started = engine_of(cluster)
    if started is None:
        nodes, per_node = 1, nodes * per_node
    layout.trainings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=layout.trainings, prefix="overhead-") as name:
        folder = TrainingFolder(Path(name))
        folder.signs.mkdir()
        job = Job(
            config=params.train, prepared=str(layout.prepared), folder=name,
            device=params.train.device, threads=cluster.processors, checkpoint=10**9, keep=1,
            timeout=watch.timeout, ranks=nodes * per_node, attempt=f"overhead-{time.time_ns()}",
        )  # fmt: skip
        job.write(folder.job)
        machines = Machines(per_node, nodes, elsewhere=started is not None)
        begin = time.monotonic()

        def tick() -> None:
            steps = [sign.step for sign in heartbeat.signs(folder.signs)]
            if len(steps) == job.ranks and min(steps) > 0:
                raise _Enough

        try:
            if started is None:
                supervise(job, folder, machines, root=layout.root, restarts=0, tick=tick)
            else:
                submission = Submission(started, cluster, folder, layout.root, machines)
                submission.run(job, None, restarts=0, tick=tick)
        except _Enough:
            return time.monotonic() - begin
    raise Failed("the training ended before it was seen at work; raise train.epochs")


def overhead(project: Path, engine: str, nodes: int, times: int) -> None:
    """Print the seconds to the first step, by this machine and by an engine."""
    layout = Layout.find(project)
    params = params_file.load(layout.params)
    if "auto" in (params.train.device, params.train.processes):
        raise UserError("train.device, train.processes: 'auto' is not allowed here")
    params = replace(params, supervision=replace(params.supervision, nodes=nodes))
    print(f"| engine | seconds to the first step of all ranks, {times} times |\n|---|---|")
    for each in (LOCAL, engine):
        found = [first_step(layout, params, each) for _ in range(times)]
        print(f"| {each} | {', '.join(f'{seconds:.1f}' for seconds in found)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(description="What engines cost, and how trainings scale.")
    commands = parser.add_subparsers(dest="command", required=True)
    scaled = commands.add_parser("scale")
    scaled.add_argument("--model", choices=sharing.MODELS, default="autoencoder")
    scaled.add_argument("--batch", type=int, default=64, help="examples of a rank")
    scaled.add_argument("--period", type=int, default=100)
    scaled.add_argument("--ranks", nargs="+", type=int, default=list(SIZES))
    started = commands.add_parser("overhead")
    started.add_argument("project", type=Path)
    started.add_argument("--engine", choices=("slurm", "kubernetes"), default="slurm")
    started.add_argument("--nodes", type=int, default=2)
    started.add_argument("--times", type=int, default=3)
    asked = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    print(f"    python -m benchmarks.engines {shlex.join(given)}\n")
    if asked.command == "scale":
        scale(asked.model, asked.batch, asked.period, asked.ranks)
    else:
        overhead(asked.project, asked.engine, asked.nodes, asked.times)
    return 0


if __name__ == "__main__":
    sys.exit(main())

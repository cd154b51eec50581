"""What a step costs, reparametrisations included, beside SGD with momentum; one table from one run.

python -m benchmarks.step_time --model autoencoder --batch 128 --period 100

Every method trains its own copy of the network on the same batches, random ones or real images,
from random weights or from trained ones. The methods take turns, one period of T steps at a time,
so that a slow phase of the machine meets all of them; the first turn warms up and does not count.
Ratios are formed within a turn, and the table shows their median and
quartiles. "live" counts the bytes of parameters, gradients, optimizer state, Φ and of the
statistics that are held at the end of a window of gathering; activations are left out.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import prong
from benchmarks import workloads
from benchmarks.workloads import MODELS, Workload

Optimizers = Callable[[nn.Module], list[torch.optim.Optimizer]]


def _sgd(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)]


def _third_party(name: str, **options: object) -> Optimizers:
    """Return an optimizer of the package pytorch-optimizer (`pip install prong[benchmarks]`)."""

    def build(model: nn.Module) -> list[torch.optim.Optimizer]:
        made = getattr(importlib.import_module("pytorch_optimizer"), name)
        return [made(model.parameters(), lr=1e-4, **options)]

    return build


def _muon(model: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return [
        torch.optim.Muon(matrices, lr=1e-3),
        torch.optim.SGD(others, lr=1e-3, momentum=0.9),
    ]


@dataclass(frozen=True)
class Method:
    """One row: an optimizer, and the Reparametrizer's options if there is one."""

    optimizers: Optimizers = _sgd
    options: dict[str, object] | None = None
    normalised: bool = False


WHOLE = prong.Savings(leading=None)
METHODS = {
    "sgd": Method(),
    "rmsprop": Method(lambda m: [torch.optim.RMSprop(m.parameters(), lr=1e-4)]),
    "adam": Method(lambda m: [torch.optim.Adam(m.parameters(), lr=1e-4)]),
    "muon": Method(_muon),
    "shampoo": Method(_third_party("ScalableShampoo", preconditioning_compute_steps=100)),
    "soap": Method(_third_party("SOAP")),
    "bn+sgd": Method(normalised=True),
    "prong fold": Method(options={"mode": "fold"}),
    "prong activations": Method(options={"mode": "activations"}),
    "prong": Method(options={}),
    "prong, no limit": Method(options={"step_limit": None}),
    "prong, all at once": Method(options={"savings": prong.Savings(spread=False)}),
    "prong, whole P": Method(options={"savings": WHOLE}),
    "prong, whole P, no limit": Method(options={"savings": WHOLE, "step_limit": None}),
    "prong+": Method(options={}, normalised=True),
    "two-sided": Method(options={"two_sided": prong.TwoSided()}),
}

THIRD_PARTY = ("shampoo", "soap") if find_spec("pytorch_optimizer") is None else ()
INSTALLED = [name for name in METHODS if name not in THIRD_PARTY]


@dataclass
class Run:
    """A method at work, and the seconds that it took.

    Attributes:
        steps: Seconds of each counted step.
        turns: Mean seconds of a step in each counted turn.
        refreshes: Seconds a step that `Reparametrizer.step` took in each counted turn.
        live: The most bytes that were held after a step.
    """

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    natural: prong.Reparametrizer | None
    steps: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)
    refreshes: list[float] = field(default_factory=list)
    live: int = 0

    def turn(self, work: Workload, generator: torch.Generator, length: int, counted: bool) -> None:
        """Train `length` steps."""
        seconds, refresh = [], 0.0
        for _ in range(length):
            x, labels = work.draw(generator)
            start = self._now(x)
            workloads.loss(self.model(x), x, labels).backward()  # type: ignore[no-untyped-call]
            for optimizer in self.optimizers:
                optimizer.step()
            if self.natural is not None:
                before = self._now(x)
                self.natural.step()
                refresh += self._now(x) - before
            seconds.append(self._now(x) - start)
            # Outside the clock; the gradients still live here.
            self.live = max(self.live, live_bytes(self))
            for optimizer in self.optimizers:
                optimizer.zero_grad()
        if counted:
            self.steps += seconds
            self.turns.append(sum(seconds) / length)
            self.refreshes.append(refresh / length)

    @staticmethod
    def _now(x: Tensor) -> float:
        if x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def live_bytes(run: Run) -> int:
    """Bytes of the distinct storages of parameters, gradients, state, Φ and statistics."""
    held: list[Tensor] = [*run.model.parameters(), *run.model.buffers()]
    held += [p.grad for p in run.model.parameters() if p.grad is not None]
    for optimizer in run.optimizers:
        for state in optimizer.state.values():
            held += [value for value in state.values() if torch.is_tensor(value)]
    for module in run.model.modules():
        if isinstance(module, prong.Whitened):
            for moments in (module.moments, module.backward_moments):
                if moments is not None:
                    held += [getattr(moments, name) for name in moments.TENSORS]
    if run.natural is not None:
        held += run.natural.control.tensors()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(storages.values())


def begin(method: Method, asked: argparse.Namespace, weights: dict[bool, dict[str, Tensor]]) -> Run:
    """Build a method's network, and attach the method to it."""
    torch.manual_seed(0)
    model = workloads.network(asked.model, method.normalised)
    if weights:
        model.load_state_dict(weights[method.normalised])
    return attach(method, model.to(asked.device), asked)


def attach(method: Method, model: nn.Module, asked: argparse.Namespace) -> Run:
    """Give a network the method's optimizers and Reparametrizer."""
    if method.options is None:
        return Run(model, method.optimizers(model), None)
    model = prong.whiten(model)
    optimizers = method.optimizers(model)
    natural = prong.Reparametrizer(
        model,
        optimizers,
        period=asked.period,
        samples=asked.samples,
        damping=asked.damping,
        automatic=False,  # so that a reparametrisation is timed apart from the optimizer's step
        whitening=prong.Whitening(decomposition_dtype=getattr(torch, asked.decomposition_dtype)),
        **copy.copy(method.options),  # type: ignore[arg-type]
    )
    return Run(model, optimizers, natural)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and the quartiles around it."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), float(low), float(high)


def table(runs: dict[str, Run]) -> str:
    """Return the Markdown table; ratios are to the method `sgd`."""
    base = runs["sgd"]
    lines = [
        "| method | ms a step (quartiles) | ratio to SGD (quartiles) | of it in refreshes "
        "| p99.9 ÷ median | live bytes, ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        time_, low, high = (1e3 * value for value in quartiles(run.turns))
        ratio, least, most = quartiles(
            [own / sgd for own, sgd in zip(run.turns, base.turns, strict=True)]
        )
        share = np.median([part / sgd for part, sgd in zip(run.refreshes, base.turns, strict=True)])
        tail = np.percentile(run.steps, 99.9) / np.median(run.steps)
        lines.append(
            f"| {name} | {time_:.2f} ({low:.2f}–{high:.2f}) | {ratio:.2f} ({least:.2f}–{most:.2f}) "
            f"| {share:.2f} | {tail:.1f} | {run.live / base.live:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What a step costs beside SGD with momentum.")
    parser.add_argument("--model", choices=MODELS, default="autoencoder")
    parser.add_argument("--methods", nargs="+", choices=INSTALLED, default=INSTALLED)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--period", type=int, default=100)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--damping", type=float, default=0.1)
    parser.add_argument("--decomposition-dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--images", type=Path, help="folder with MNIST's or CIFAR-10's files")
    parser.add_argument("--trained", type=int, default=0, help="updates by PRONG beforehand")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the raw seconds there")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    if asked.images is None:
        work = workloads.random(asked.model, asked.batch)
    else:
        work = workloads.real(asked.model, asked.images, asked.batch)
    work.examples = work.examples.to(asked.device)
    names = ["sgd", *(name for name in asked.methods if name != "sgd")]
    weights = {}
    if asked.trained:
        for normalised in sorted({METHODS[name].normalised for name in names}):
            weights[normalised] = workloads.trained(asked.model, normalised, work, asked.trained)
    runs = {name: begin(METHODS[name], asked, weights) for name in names}
    for turn in range(asked.rounds + 1):
        for run in runs.values():
            # Every method sees the same batches.
            generator = torch.Generator().manual_seed(turn)
            run.turn(work, generator, asked.period, counted=turn > 0)
        print(f"turn {turn} of {asked.rounds}", file=sys.stderr, flush=True)
    given = sys.argv[1:] if arguments is None else arguments
    print(f"python -m benchmarks.step_time {shlex.join(given)}")
    print(
        f"{platform.machine()}, {asked.threads} threads, {asked.device}, "
        f"torch {torch.__version__}, Python {platform.python_version()}; T = {asked.period}, "
        f"N_s = {asked.samples}, ε = {asked.damping}, batch {asked.batch}, {asked.model}, "
        f"{'real' if asked.images else 'random'} inputs, {asked.trained} updates beforehand\n"
    )
    print(table(runs))
    if THIRD_PARTY:
        print(f"\nNot measured without prong[benchmarks]: {', '.join(THIRD_PARTY)}.")
    print("\nK-FAC: not measured, no maintained package for this torch was found.")
    if asked.json is not None:
        raw = {name: {"steps": run.steps, "turns": run.turns} for name, run in runs.items()}
        partial = asked.json.with_suffix(".partial")
        partial.write_text(json.dumps(raw))
        partial.replace(asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

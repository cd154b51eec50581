"""What the shortcuts cost in error: the deep auto-encoder on MNIST, against the exact method.

python -m benchmarks.shortcuts FOLDER --updates 600 --seeds 3

FOLDER holds MNIST's files. Every variant sees the same batches from the same start, with batch
normalisation and a whitened start (PRONG⁺): without them this network hardly leaves its plateau in
so few updates. The error is the mean over images of the summed squared difference from the image,
on the first 2,000 test images.
The exact run folds in float32 and decomposes in float64, all layers at once. A shortcut should stay
within 2 % of it. The table also gives how many directions each layer kept at the end. What a step
costs is for benchmarks.step_time to say.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import prong
from benchmarks import workloads

WHOLE = prong.Savings(leading=None, spread=False, early=False)
VARIANTS: dict[str, dict[str, object]] = {
    "exact": {
        "mode": "activations",
        "savings": WHOLE,
        "whitening": prong.Whitening(decomposition_dtype=torch.float64),
    },
    "preconditioned": {"savings": WHOLE},
    "preconditioned, spread": {"savings": prong.Savings(leading=None, early=False)},
    "leading 0.1, spread": {"savings": prong.Savings(leading=0.1, early=False)},
    "leading 0.3, spread": {"savings": prong.Savings(leading=0.3, early=False)},
    "leading 1, spread": {"savings": prong.Savings(leading=1.0, early=False)},
}


@dataclass(frozen=True)
class Result:
    """What one training came to.

    Attributes:
        error: Summed squared error of an image.
        directions: Columns of each layer's P; its width where P is whole.
    """

    error: float
    directions: tuple[int, ...]


def train(
    work: workloads.Workload,
    seed: int,
    options: dict[str, object] | None,
    asked: argparse.Namespace,
) -> Result:
    """Train from the start that `seed` gives; without `options` by SGD alone."""
    torch.manual_seed(seed)
    network = workloads.network("autoencoder", True)
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    rate = asked.sgd_lr if options is None else asked.lr
    natural = None
    model: nn.Module = network if options is None else prong.whiten(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    if options is not None:
        natural = prong.Reparametrizer(
            model,
            optimizer,
            period=asked.period,
            damping=0.1,
            step_limit=asked.step_limit,
            **options,  # type: ignore[arg-type]
        )
        natural.initialize([work.examples[:2000]])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(asked.updates):
        x, _ = work.draw(generator)
        workloads.loss(model(x), x, None).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if natural is not None:
            natural.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        test = work.test[:2000]
        error = float((torch.sigmoid(model(test)) - test).square().sum(1).mean())
    kept = tuple(
        layer.mean.shape[1] if layer.precision_matrix is None else layer.precision_matrix.shape[2]
        for layer in network
        if isinstance(layer, prong.Whitened)
    )
    return Result(error, kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for every variant."""
    parser = argparse.ArgumentParser(description="What the shortcuts cost in error.")
    parser.add_argument("folder", type=Path, help="with MNIST's four files")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--period", type=int, default=100)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--step-limit", type=float, default=0.003)
    parser.add_argument("--sgd-lr", type=float, default=0.003)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    asked = parser.parse_args(arguments)
    work = workloads.real("autoencoder", asked.folder, asked.batch)
    names = ["exact", *(name for name in asked.variants if name != "exact")]
    results: dict[str, list[Result]] = {name: [] for name in ["sgd", *names]}
    for seed in range(asked.seeds):
        for name, done in results.items():
            done.append(train(work, seed, VARIANTS.get(name), asked))
            print(f"seed {seed}: {name} {done[-1]}", file=sys.stderr, flush=True)
    given = sys.argv[1:] if arguments is None else arguments
    print(f"python -m benchmarks.shortcuts {' '.join(given)}\n")
    print("| variant | error | ÷ exact, each seed | directions at the end |")
    print("|---|---|---|---|---|")
    for name, done in results.items():
        ratios = ", ".join(
            f"{own.error / exact.error:.3f}"
            for own, exact in zip(done, results["exact"], strict=True)
        )
        error = statistics.mean(one.error for one in done)
        print(f"| {name} | {error:.2f} | {ratios} | {done[-1].directions} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

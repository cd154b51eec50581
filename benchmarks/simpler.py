"""Is a simpler model as good? A linear one, and the same network by plainer methods.

python -m benchmarks.simpler --epochs 3 --seeds 2
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.trial import options, settings, trial
from pipelines.core.config import Method
from pipelines.core.paths import Layout
from pipelines.data.prepared import Split, load_split

MOST = 4000
"""Training images of the linear model: its cost grows with their cube."""
PLAINER: tuple[Method, ...] = ("sgd", "bn", "adam")


def linear(train: Split, test: Split, *, ridge: float = 3.0) -> float:
    """Return the error of ridge regression on ±1 codes of the classes, a share in [0, 1].

    Solved in its dual form, n × n for n training images, whatever the size of an image.

    Args:
        train: At most `MOST` of its images are used; they lie in no order that matters.
        test: Scored on.
        ridge: Added to the diagonal, relative to the mean of it.
    """
    chosen = slice(0, MOST)
    pixels = train.inputs[chosen].reshape(len(train.targets[chosen]), -1) / 255
    mean = pixels.mean(axis=0)
    rows, codes = pixels - mean, np.where(np.eye(train.targets.max() + 1, dtype=bool), 1.0, -1.0)
    kernel = rows @ rows.T
    kernel[np.diag_indices_from(kernel)] += ridge * kernel.trace() / len(kernel)
    weights = rows.T @ np.linalg.solve(kernel, codes[train.targets[chosen]])
    answers = ((test.inputs.reshape(len(test.targets), -1) / 255 - mean) @ weights).argmax(axis=1)
    return float((answers != test.targets).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the test error of simpler models beside that of the method in `params.yaml`."""
    asked = options("Is a simpler model as good?").parse_args(arguments)
    layout = Layout.find()
    train = settings(layout, asked.epochs)
    print(f"{'model':<24} {'test error %':>13} {'seconds':>8}")
    start = time.perf_counter()
    error = linear(load_split(layout.prepared, "train"), load_split(layout.prepared, "test"))
    print(f"{'linear':<24} {100 * error:13.2f} {time.perf_counter() - start:8.1f}", flush=True)
    for method in (*(m for m in PLAINER if m != train.method), train.method):
        done = [
            trial(replace(train, method=method, seed=seed), layout.prepared, split="test")
            for seed in range(asked.seeds)
        ]
        error = statistics.mean(one.error for one in done)
        seconds = statistics.mean(one.seconds for one in done)
        print(f"{f'network, {method}':<24} {100 * error:13.2f} {seconds:8.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

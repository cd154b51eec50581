"""What a model loses by not being trained anew: images that came since, inputs that drift.

python -m benchmarks.staleness --epochs 2 --seeds 2
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.trial import Change, options, score, settings, trial, unchanged
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_split

SHARES = (0.25, 0.5, 0.75, 1.0)


def moved(pixels: int) -> Change:
    """Return a drift: images moved to the right, black coming in."""

    def change(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = np.zeros_like(images)
        out[..., pixels:] = images[..., : images.shape[-1] - pixels]
        return out

    return change


def darker(share: float) -> Change:
    """Return a drift: every value at a share of what it was."""
    return lambda images: (images * np.float32(share)).round().astype(np.uint8)


DRIFTS: dict[str, Change] = {
    "none": unchanged,
    "3 pixels to the right": moved(3),
    "5 pixels to the right": moved(5),
    "half as bright": darker(0.5),
    "a fifth as bright": darker(0.2),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the test error of older models, and of the newest on drifted images."""
    asked = options("What a model loses by not being trained anew.").parse_args(arguments)
    layout = Layout.find()
    train = settings(layout, asked.epochs)
    # Images lie in the order of their content's hash: a share drawn from it is the same each time.
    count = len(load_split(layout.prepared, "train").hashes)
    place = np.random.default_rng(0).permutation(count) / count
    test = load_split(layout.prepared, "test")
    print(f"{'trained on':<24} {'images':>7} {'test error %':>13}")
    newest = []
    for share in SHARES:
        done = [
            trial(replace(train, seed=seed), layout.prepared, split="test", keep=place < share)
            for seed in range(asked.seeds)
        ]
        error = 100 * statistics.mean(one.error for one in done)
        count = int((place < share).sum())
        print(f"{f'{share:.0%} of the images':<24} {count:7d} {error:13.2f}", flush=True)
        newest = done
    print(f"\n{'asked with drift':<24} {'':>7} {'test error %':>13}")
    for name, drift in DRIFTS.items():
        error = 100 * statistics.mean(score(one.network, test, drift)[0] for one in newest)
        print(f"{name:<24} {'':>7} {error:13.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

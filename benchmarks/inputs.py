"""Does every part of the input earn its cost? Train without it and see.

python -m benchmarks.inputs --epochs 2 --seeds 2
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.trial import Change, options, settings, trial, unchanged
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card


def coarse(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images [n, channels, size, size] with each 2×2 block at its mean."""
    size = images.shape[-1] // 2 * 2
    blocks = images[..., :size, :size].astype(np.uint16)
    means = sum(blocks[..., i::2, j::2] for i in (0, 1) for j in (0, 1)) // 4
    out = images.copy()
    out[..., :size, :size] = means.repeat(2, axis=-2).repeat(2, axis=-1).astype(np.uint8)
    return out


def without_border(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images whose outer eighth on each side is black."""
    edge = images.shape[-1] // 8
    out = np.zeros_like(images)
    out[..., edge:-edge, edge:-edge] = images[..., edge:-edge, edge:-edge]
    return out


def without_centre(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images whose middle half is black."""
    quarter = images.shape[-1] // 4
    out = images.copy()
    out[..., quarter:-quarter, quarter:-quarter] = 0
    return out


def black_and_white(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images of two levels: the grey levels between are lost."""
    return np.where(images > 127, 255, 0).astype(np.uint8)


def grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images whose channels all hold their mean: the colour is lost."""
    mean = images.mean(axis=1, keepdims=True, dtype=np.float32).round().astype(np.uint8)
    return np.broadcast_to(mean, images.shape).copy()


def changes(channels: int) -> dict[str, Change]:
    """Return what is taken away, by name."""
    found: dict[str, Change] = {
        "all of it": unchanged,
        "half the resolution": coarse,
        "no border": without_border,
        "no centre": without_centre,
        "black and white": black_and_white,
    }
    return {**found, "no colour": grey} if channels == 3 else found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the validation error without each part of the input."""
    asked = options("Does every part of the input earn its cost?").parse_args(arguments)
    layout = Layout.find()
    train = settings(layout, asked.epochs)
    print(f"{'input':<22} {'error %':>8} {'worse by':>9} {'loss':>8} {'seconds':>8}")
    whole = 0.0
    for name, change in changes(load_card(layout.prepared).form.channels).items():
        done = [
            trial(replace(train, seed=seed), layout.prepared, change=change)
            for seed in range(asked.seeds)
        ]
        error, loss, seconds = (
            statistics.mean(getattr(one, figure) for one in done)
            for figure in ("error", "loss", "seconds")
        )
        whole = error if change is unchanged else whole
        apart = 100 * (error - whole)
        print(f"{name:<22} {100 * error:8.2f} {apart:+9.2f} {loss:8.4f} {seconds:8.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One training as an experiment: other settings or other images, and what came of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.core import params_file
from pipelines.core.config import TrainConfig
from pipelines.core.paths import Layout
from pipelines.data.prepared import Split, load_split
from pipelines.training.loop import Loop
from pipelines.training.parallel import TrainingRanks

Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Trial:
    """What one training came to.

    Attributes:
        error: Wrong answers on the split it was scored on, a share in [0, 1].
        loss: Mean cross-entropy there, nats.
        seconds: Wall-clock time of the training.
        network: What was trained, in evaluation mode.
    """

    error: float
    loss: float
    seconds: float
    network: torch.nn.Module


def options(description: str) -> argparse.ArgumentParser:
    """Return a parser of what every experiment takes: `--epochs` and `--seeds`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=2)
    return parser


def settings(layout: Layout, epochs: int | None) -> TrainConfig:
    """Return the checkout's settings of the training, for other epochs if given."""
    train = params_file.load(layout.params).train
    return replace(train, epochs=epochs or train.epochs)


def unchanged(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the images."""
    return images


def score(
    network: torch.nn.Module, split: Split, change: Change = unchanged
) -> tuple[float, float]:
    """Return error (a share) and mean cross-entropy (nats) of a network on a split."""
    network.eval()
    with torch.no_grad():
        parts = [network(part) for part in torch.from_numpy(change(split.inputs)).split(256)]
    logits, labels = torch.cat(parts), torch.from_numpy(split.targets)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return float((logits.argmax(1) != labels).float().mean()), float(loss)


def trial(
    train: TrainConfig,
    prepared: Path,
    *,
    split: str = "validation",
    change: Change = unchanged,
    keep: NDArray[np.bool_] | None = None,
) -> Trial:
    """Train once on the CPU and score.

    Args:
        train: Settings of the training.
        prepared: Output of the stage prepare.
        split: What to score on; `test` only to report, never to choose.
        change: What is done to every image, in training and in scoring.
        keep: Which training images to use [n]; all if None.
    """
    loop = Loop(train, prepared, TrainingRanks(0, 1, torch.device("cpu")), None)
    chosen = torch.from_numpy(keep) if keep is not None else slice(None)
    loop.inputs = torch.from_numpy(change(loop.inputs.numpy()))[chosen]
    loop.targets = loop.targets[chosen]
    loop.validation = (torch.from_numpy(change(loop.validation[0].numpy())), loop.validation[1])
    loop.schedule.steps = loop.steps  # of the images that are left
    start = time.perf_counter()
    loop.run()
    seconds = time.perf_counter() - start
    return Trial(*score(loop.network, load_split(prepared, split), change), seconds, loop.network)

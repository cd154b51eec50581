"""A tiny auto-encoder on random pixels, to try methods on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipelines.paper.compared_methods import METHODS
from pipelines.paper.experiment import TrainingTask
from pipelines.paper.networks import autoencoder, loss
from pipelines.paper.training_problem import TrainingProblem

PIXELS = 12


def images() -> Tensor:
    """Return 96 images of a few directions, [96, 12] in [0, 1]."""
    drawn = torch.Generator().manual_seed(0)
    latent = torch.randn(96, 3, generator=drawn) @ torch.randn(3, PIXELS, generator=drawn)
    return torch.sigmoid(latent)


def problem(normalised: bool = False, updates: int = 24) -> TrainingProblem:
    """Return what is trained, with batches of 8."""
    pixels = images()

    def measure(model: nn.Module) -> Mapping[str, float]:
        return {"train": float((torch.sigmoid(model(pixels)) - pixels).square().sum(1).mean())}

    return TrainingProblem(
        network=lambda: autoencoder("sigmoid", normalised, (PIXELS, 8, 3, 8, PIXELS)),
        inputs=pixels,
        targets=pixels,
        loss=lambda outputs, targets: loss(outputs, targets, None),
        examples=8 * updates,
        marks=3,
        measure=measure,
    )


def task(method: str, normalised: bool = False, **more: object) -> TrainingTask:
    """Return a final training with a method's first settings and batches of 8."""
    values = {**METHODS[method].begin(normalised), "batch": 8}
    return replace(TrainingTask(method, values, 0, True), **more)  # type: ignore[arg-type]

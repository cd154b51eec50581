"""The methods that `train.method` names: their optimizers, default rates and reparametrisation."""

from __future__ import annotations

import torch
from torch import nn

import prong
from pipelines.core.config import Method, TrainConfig

LEARNING_RATE: dict[Method, float] = {
    "sgd": 0.03,
    "bn": 0.05,
    "adam": 1e-3,
    "prong": 0.03,
    "prong+": 0.05,
}
"""The rates for `train.lr: auto`, each the best of a coarse sweep on digits (docs/log.md)."""


def learning_rate(config: TrainConfig) -> float:
    """Return the rate after the warm-up."""
    return LEARNING_RATE[config.method] if config.lr == "auto" else config.lr


def optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a method; biases and normalisation have no weight decay.

    For PRONG the decay acts as decoupled: shrinking V by a factor shrinks W = V U by the same.
    """
    weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    rate = learning_rate(config)
    if config.method == "adam":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum)


def reparametrizer(
    config: TrainConfig, network: nn.Module, optimizer: torch.optim.Optimizer
) -> prong.Reparametrizer | None:
    """Return the method's `Reparametrizer`, or None for a method without whitening."""
    if config.method not in ("prong", "prong+"):
        return None
    return prong.Reparametrizer(
        network,
        optimizer,
        period=config.period,
        samples=config.samples,
        damping=config.damping,
        step_limit=config.step_limit or None,
        mode="auto",
    )

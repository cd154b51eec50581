"""The methods that `train.method` names: their optimizers, default rates and reparametrisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import prong
from pipelines.core.config import Method, TrainConfig
from pipelines.core.errors import UserError

LEARNING_RATE: dict[Method, float] = {
    "sgd": 0.03,
    "bn": 0.05,
    "rmsprop": 1e-3,
    "adam": 1e-3,
    "adamw": 3e-3,
    "muon": 3e-3,
    "prong": 0.03,
    "prong+": 0.05,
}
"""The rates for `train.lr: auto`: the best of a coarse sweep on digits (docs/log.md); for rmsprop,
adamw and muon those that won on convolutional networks (docs/performance.md)."""


def learning_rate(config: TrainConfig) -> float:
    """Return the rate after the warm-up."""
    return LEARNING_RATE[config.method] if config.lr == "auto" else config.lr


def optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a method; biases and normalisation have no weight decay.

    For PRONG the decay acts as decoupled: shrinking V by a factor shrinks W = V U by the same.

    Raises:
        UserError: If the installed torch lacks it.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    rate, decay = learning_rate(config), config.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match config.method:
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=rate)
        case "adam" | "adamw":
            return torch.optim.AdamW(groups, lr=rate)
        case "muon":
            matrices = [p for p in trained if p.ndim == 2]
            groups[0]["params"] = [p for p in trained if p.ndim > 2]
            return MuonWithAdamW(matrices, groups, rate=rate, decay=decay, momentum=config.momentum)
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for matrices and AdamW for all other parameters, as one optimizer.

    The groups and the state are those of the two optimizers themselves, so that a rate that is set
    here, or a state that is loaded here, is theirs.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        rest: list[dict[str, Any]],
        *,
        rate: float,
        decay: float,
        momentum: float,
    ) -> None:
        """Take the parameters.

        Args:
            matrices: Weights with two dimensions.
            rest: Groups of all other parameters, with their weight decay.
            rate: Learning rate of both: Muon's steps are scaled to the size of AdamW's.
            decay: Weight decay of the matrices.
            momentum: Of Muon.

        Raises:
            UserError: If this torch has no Muon.
        """
        kind: Any = getattr(torch.optim, "Muon", None)
        if kind is None:
            raise UserError(
                f"train.method = 'muon': torch {torch.__version__} has no torch.optim.Muon; "
                "install torch 2.9 or later, or take adamw"
            )
        self._inner: list[torch.optim.Optimizer] = []
        self._sizes: list[int] = []
        groups = [group for group in rest if group["params"]]
        if matrices:
            options = {"weight_decay": decay, "momentum": momentum}
            self._add(
                kind([{"params": matrices}], lr=rate, adjust_lr_fn="match_rms_adamw", **options)
            )
        if groups:
            self._add(torch.optim.AdamW(groups, lr=rate))
        held = [group for inner in self._inner for group in inner.param_groups]
        super().__init__(held, {})
        self._share()

    def _add(self, inner: torch.optim.Optimizer) -> None:
        self._inner.append(inner)
        self._sizes.append(len(inner.param_groups))

    def _share(self) -> None:
        """Make groups and state the same objects here and in the optimizers themselves."""
        at = 0
        for inner, size in zip(self._inner, self._sizes, strict=True):
            inner.param_groups = self.param_groups[at : at + size]
            inner.state = self.state
            at += size

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with each optimizer; a closure is not supported.

        Raises:
            TypeError: If a closure is given.
        """
        if closure is not None:
            raise TypeError("MuonWithAdamW takes no closure")
        for inner in self._inner:
            inner.step()


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

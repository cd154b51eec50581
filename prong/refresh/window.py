"""The window of training steps before a reparametrisation whose inputs give the statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prong.linalg.dtypes import wide_dtype
from prong.refresh.collect import new_backward_moments, new_moments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prong.distributed.ranks import Ranks
    from prong.layers.base import Whitened
    from prong.options import TwoSided
    from prong.refresh.schedule import Schedule
    from prong.refresh.tied_layers import TiedLayers

FEWEST = 256
PER_FEATURE = 32


def start_gathering(layers: Sequence[Whitened], two_sided: TwoSided | None) -> None:
    """Let layers gather statistics of their inputs, and of δ for two-sided whitening."""
    for layer in layers:
        layer.moments = new_moments(layer)
        if two_sided is not None:
            layer.backward_moments = new_backward_moments(layer)
            # Sampled δ come from a separate backward pass; the gradients of the loss do not count.
            layer.gradients_wanted = two_sided.statistics == "empirical"


def stop_gathering(layers: Sequence[Whitened]) -> None:
    """Delete all statistics and free their memory."""
    for layer in layers:
        layer.moments = layer.backward_moments = None


@dataclass(frozen=True)
class BatchesSeen:
    """The size of a training step's batch, over all ranks.

    Attributes:
        examples: B, the number of examples of a step; the smallest number over all layers.
        samples: by unit name, the number of samples (pixels, tokens) of one example; 1 if unknown.
    """

    examples: float
    samples: dict[str, float]

    def window(self, unit: TiedLayers, most: int, period: int) -> int:
        """Return how many steps hold enough examples for a unit's estimate: 1 to `period`.

        With 32 N samples, a covariance of N features has a relative error of about √(N/32 N), one
        sixth, in every direction. More samples would cost time and change little. Pixels of one
        image are correlated, so at least `FEWEST` examples are used, or `most` if that is less.

        Args:
            unit: the layers that share a weight.
            most: N_s, the largest number of examples.
            period: T, steps.
        """
        features = unit.layer.mean.shape[1]
        enough = max(FEWEST, PER_FEATURE * features / self.samples.get(unit.name, 1.0))
        return min(period, max(1, math.ceil(min(most, enough) / self.examples)))


def batches_seen(units: Sequence[TiedLayers], ranks: Ranks, steps: int) -> BatchesSeen | None:
    """Compute the size of a step's batch from the gathered statistics.

    Args:
        units: the units whose layers have gathered statistics.
        ranks: the processes whose examples are added.
        steps: number of steps with statistics.

    Returns:
        None if no layer has seen an example.
    """
    device = units[0].weight.device
    counts = torch.zeros(len(units), 2, dtype=wide_dtype(device), device=device)
    for row, unit in zip(counts, units, strict=True):
        moments = unit.moments()
        if moments is not None:
            row[0] = moments.count.squeeze()
            row[1] = (moments.examples + moments.rejected).squeeze()
    counts = ranks.sum_(counts)
    seen = counts[:, 1][counts[:, 1] > 0]
    if not len(seen):
        return None
    per_example = (counts[:, 0] / counts[:, 1].clamp(min=1)).clamp(min=1).tolist()
    return BatchesSeen(
        float(seen.min()) / max(1, steps),
        {unit.name: value for unit, value in zip(units, per_example, strict=True)},
    )


class Gathering:
    """Turns the statistics of each layer on in the steps just before its reparametrisation.

    Attributes:
        schedule: the steps of the reparametrisations.
        seen: the size of a step's batch; None before the first step with statistics.
        steps: number of consecutive steps with statistics.
    """

    def __init__(
        self,
        units: Sequence[TiedLayers],
        schedule: Schedule,
        samples: int,
        two_sided: TwoSided | None,
        ranks: Ranks,
        *,
        from_training: bool,
    ) -> None:
        """Gather at most N_s = `samples` examples; gather nothing unless `from_training`."""
        self.schedule = schedule
        self.seen: BatchesSeen | None = None
        self.steps = 0
        self._units, self._samples, self._two_sided = list(units), samples, two_sided
        self._ranks, self._from_training = ranks, from_training

    @property
    def active(self) -> bool:
        """Whether any layer gathers statistics now."""
        return any(layer.moments is not None for unit in self._units for layer in unit.layers)

    def window(self, unit: TiedLayers) -> int:
        """Return how many steps of statistics a unit needs; T while B is unknown."""
        period = self.schedule.period
        return period if self.seen is None else self.seen.window(unit, self._samples, period)

    def learn(self) -> None:
        """Set `seen` from the gathered statistics."""
        if self.seen is None and self.steps:
            self.seen = batches_seen(self._units, self._ranks, self.steps)

    def plan(self, steps: int) -> None:
        """Turn the statistics of each unit on or off for the step after `steps`."""
        if not self._from_training:
            return
        self.learn()
        if not self.active:
            self.steps = 0
        for index, unit in enumerate(self._units):
            wanted = self.schedule.remaining(index, steps) <= self.window(unit)
            held = any(layer.moments is not None for layer in unit.layers)
            if wanted and not held and unit.weight.requires_grad:
                start_gathering(unit.layers, self._two_sided)
            elif held and not wanted:
                stop_gathering(unit.layers)

    def stop(self) -> None:
        """Delete all statistics."""
        for unit in self._units:
            stop_gathering(unit.layers)
        self.steps = 0

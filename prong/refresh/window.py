"""The window of training steps before a reparametrisation whose inputs give the statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prong.linalg.dtypes import wide_dtype
from prong.refresh.collect import new_backward_moments, new_moments
from prong.refresh.refresh_report import LayerReport
from prong.refresh.result import NO_SAMPLE, NOT_GATHERED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

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
        layer.moments, layer.seen = new_moments(layer), False
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


def counts_of(units: Sequence[TiedLayers], ranks: Ranks) -> Tensor:
    """Samples, examples and rejected batches of what was gathered, over all ranks, `[units, 3]`."""
    device = units[0].weight.device
    counts = torch.zeros(len(units), 3, dtype=wide_dtype(device), device=device)
    for row, unit in zip(counts, units, strict=True):
        for layer in unit.layers:
            if layer.moments is not None:
                moments = layer.moments.settle()
                row[0] += moments.count.squeeze()
                row[1] += moments.examples.squeeze()
                row[2] += moments.rejected.squeeze()
    return ranks.sum_(counts)


def batches_seen(units: Sequence[TiedLayers], counts: Tensor, steps: int) -> BatchesSeen | None:
    """What the steps that were gathered have shown.

    Args:
        units: units whose layers have gathered.
        counts: what `counts_of` gave for them.
        steps: number of steps gathered.

    Returns:
        None if no layer has seen an example.
    """
    examples = counts[:, 1] + counts[:, 2]
    seen = examples[examples > 0]
    if not len(seen):
        return None
    per_example = (counts[:, 0] / examples.clamp(min=1)).clamp(min=1).tolist()
    return BatchesSeen(
        float(seen.min()) / max(1, steps),
        {unit.name: value for unit, value in zip(units, per_example, strict=True)},
    )


def unseen(
    units: Sequence[TiedLayers], reports: Mapping[str, LayerReport], training: bool
) -> list[str]:
    """A warning if layers that train were due and had seen nothing."""
    names = [
        unit.name
        for unit in units
        if unit.weight.requires_grad
        and unit.name in reports
        and reports[unit.name].reason in (NOT_GATHERED, NO_SAMPLE)
        and not reports[unit.name].rejected
    ]
    if not names:
        return []
    why = "" if training else "; the model is in eval mode, where none are taken"
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [
        f"no statistics: {shown} saw no training pass since the last reparametrisation{why}. Put "
        "these layers into training mode (layers of BatchNorm may stay in eval mode), or hand over "
        "`batches`"
    ]


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
        self.started: dict[str, int] = {}
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

    def too_few(self, units: Sequence[TiedLayers], steps: int) -> dict[str, LayerReport]:
        """Units whose turn must wait, because far fewer examples came than were planned.

        The batches became smaller, or the layer began to train in the middle of its window: the
        next window is long enough again. The first window is of unknown batches, and counts as it
        is.

        Args:
            units: those that are due.
            steps: optimizer steps made.

        Returns:
            A report for each unit that waits.
        """
        before = self.seen
        if before is None or not self.steps:
            return {}
        index = {unit.name: number for number, unit in enumerate(self._units)}
        planned = [
            before.examples * min(self.window(u), self.schedule.gap(index[u.name], steps))
            for u in units
        ]
        counts = counts_of(units, self._ranks)
        waiting, smallest = {}, before.examples
        for unit, wanted, (_, found, rejected) in zip(units, planned, counts.tolist(), strict=True):
            if not rejected and 0 < found < wanted / 2 and unit.weight.requires_grad:
                reason = (
                    f"{found:.0f} examples were seen and {wanted:.0f} planned: batches became "
                    "smaller, or the layer began to train"
                )
                waiting[unit.name] = LayerReport(unit.name, False, reason)
            if not rejected and found:
                made = steps - self.started.get(unit.name, steps - self.steps)
                smallest = min(smallest, found / max(1, made))
        if smallest < before.examples / 2:
            # The next window is to fit the batches of now.
            self.seen = BatchesSeen(smallest, before.samples)
        return waiting

    def learn(self) -> None:
        """Set `seen` from the gathered statistics."""
        if self.seen is None and self.steps:
            self.seen = batches_seen(self._units, counts_of(self._units, self._ranks), self.steps)

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
                self.started[unit.name] = steps
            elif held and not wanted:
                stop_gathering(unit.layers)

    def stop(self) -> None:
        """Delete all statistics."""
        for unit in self._units:
            stop_gathering(unit.layers)
        self.steps = 0

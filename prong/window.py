"""The window of training steps whose forward passes are sampled before a reparametrisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prong.gathering import new_backward_moments, new_moments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prong.ranks import Ranks
    from prong.units import Unit
    from prong.whitened import Whitened


def start_gathering(layers: Sequence[Whitened], two_sided: str | None) -> None:
    """Let layers take statistics of their inputs, and for two-sided whitening of their δ."""
    for layer in layers:
        layer.moments = new_moments(layer)
        if two_sided is not None:
            layer.backward_moments = new_backward_moments(layer)
            # Sampled δ come from a backward pass of their own; the loss's must not count.
            layer.gradients_wanted = two_sided == "empirical"


def stop_gathering(layers: Sequence[Whitened]) -> None:
    """Forget all statistics and free their memory."""
    for layer in layers:
        layer.moments = layer.backward_moments = None


def examples_per_step(units: Sequence[Unit], ranks: Ranks, steps: int) -> float | None:
    """B: the examples, over all ranks, that one step shows to the layer that sees fewest.

    Args:
        units: units whose layers have gathered.
        ranks: the processes whose examples add up.
        steps: number of steps gathered.

    Returns:
        None if no layer has seen an example.
    """
    seen = [
        float(moments.examples + moments.rejected)
        for unit in units
        if (moments := unit.moments()) is not None
    ]
    fewest = min([number for number in seen if number > 0], default=0.0)
    total = float(ranks.sum_(torch.tensor([fewest], device=units[0].weight.device)))
    return total / max(1, steps) if total > 0 else None

"""What users changed between two steps: a frozen bias, a checkpoint that was loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prong.linalg.projection import Phi
from prong.refresh.optimizer_state import carry_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    from prong.refresh.narrow_layers import SmallLayers
    from prong.refresh.step_control import StepControl
    from prong.refresh.tied_layers import TiedLayers


@torch.no_grad()
def follow_changes(
    units: Sequence[TiedLayers],
    optimizers: Sequence[Optimizer],
    control: StepControl,
    small: SmallLayers,
) -> None:
    """Bring all that depends on Φ and V up to date, just before a step.

    A bias that was frozen takes c out of its layer (see `Whitened.follow_bias`), out of the layers
    that share the weight, and out of the momentum. A layer whose numbers were loaded or drawn anew
    is measured again.
    """
    replaced = False
    for unit in units:
        layers = unit.layers
        frozen = [each.bias is not None and not each.bias.requires_grad for each in layers]
        if any(frozen):
            _uncentre(unit, optimizers)
        if any(layer.replaced for layer in layers):
            for layer in layers:
                layer.replaced = False
            control.forget_unit(unit)
            replaced = True
    if replaced:
        small.arrange()


def _uncentre(unit: TiedLayers, optimizers: Sequence[Optimizer]) -> None:
    for layer in unit.layers:
        layer.follow_bias()
    dropped = next((x.dropped_centre for x in unit.layers if x.dropped_centre is not None), None)
    if dropped is None:
        return
    for layer in unit.layers:
        if layer.bias is not None and bool(layer.mean.any()):
            layer.drop_centre()
        layer.dropped_centre = None
    new = unit.wide_phi()
    old = Phi(dropped.to(new.mean), new.whitener, new.inverse, new.output, new.output_inverse)
    carry_state(optimizers, unit, old, new, "gradient")

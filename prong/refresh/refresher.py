"""Reparametrisation of units of a model, from gathered statistics or from batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prong.convert import refuse_sharded_layers, unwrap
from prong.distributed.sharding import refuse_flat
from prong.refresh.collect import first_batches, gather, in_call_order
from prong.refresh.exchange import Refresh, assignment
from prong.refresh.step_hooks import optimizers_of
from prong.refresh.tied_layers import check_held, tied_layers_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from prong.distributed.ranks import Ranks
    from prong.options import SolveSettings
    from prong.refresh.collect import Forward
    from prong.refresh.narrow_layers import SmallLayers
    from prong.refresh.refresh_report import LayerReport
    from prong.refresh.step_control import StepControl
    from prong.refresh.tied_layers import TiedLayers


class Refresher:
    """Reparametrises units of one model.

    Args:
        model: the whitened model.
        units: all units of the model.
        settings: the settings.
        ranks: the processes that share the statistics and the work.
        optimizers: the optimizers whose state is transformed into the new basis.
        control: the step control, which receives ‖V‖.
        small: the narrow layers, which receive their new P.
        samples: N_s, number of examples of an estimate.
        forward: how to run a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[TiedLayers],
        settings: SolveSettings,
        ranks: Ranks,
        optimizers: Sequence[Optimizer],
        control: StepControl,
        small: SmallLayers,
        samples: int,
        forward: Forward,
    ) -> None:
        """Store the arguments."""
        self.model, self.units, self.settings, self.ranks = model, units, settings, ranks
        self.optimizers, self.control, self.small = optimizers, control, small
        self.samples, self.forward = samples, forward
        self.dampings: dict[str, Tensor] | None = None

    def gathered(
        self, units: Sequence[TiedLayers], init: str = "preserve"
    ) -> tuple[dict[str, LayerReport], list[str]]:
        """Reparametrise units from gathered statistics; return reports by name, and notes."""
        refresh = Refresh(
            self.settings, self.ranks, self.optimizers, self.dampings, self.control, init
        )
        # Assign all units even if only a few are due, so that the work of a whole period is
        # distributed evenly when layers take turns.
        owners = assignment(self.units, self.settings, self.ranks.size)
        self.small.settle()
        found = refresh(units, owners, self.units)
        self.small.updated(units)
        return found

    def collect(self, units: Sequence[TiedLayers], batches: Iterable[Any]) -> None:
        """Gather statistics of units from batches; frozen layers gather none and keep their Φ."""
        layers = [layer for unit in units if unit.weight.requires_grad for layer in unit.layers]
        gather(self.model, layers, self._first(batches), self.forward)

    def layer_by_layer(
        self, batches: Iterable[Any], init: str
    ) -> tuple[dict[str, LayerReport], list[str]]:
        """Reparametrise units in the order of the forward pass, each with updated inputs.

        Args:
            batches: the first batches that hold N_s examples are used.
            init: "balanced" or "whitened".

        Returns:
            Reports by name, and notes.
        """
        taken = self._first(batches)
        layers: dict[str, LayerReport] = {}
        notes: list[str] = []
        order = in_call_order(self.model, self.units, taken[0], self.forward, self.ranks)
        for unit, called in order:
            if called and unit.weight.requires_grad:
                gather(self.model, called, taken, self.forward, only_these=True)
            found, lost = self.gathered([unit], init)
            layers.update(found)
            notes += lost
        return layers, notes

    def _first(self, batches: Iterable[Any]) -> list[Any]:
        return first_batches(batches, self.samples, self.units[0].weight.device, self.ranks)


def checked(
    model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]
) -> tuple[nn.Module, list[Optimizer], list[TiedLayers]]:
    """Return the model without its wrappers, the optimizers as a list, and the units.

    Raises:
        TypeError: if `optimizer` is not an optimizer or a sequence of optimizers.
        ValueError: if the model is not whitened, a whitened layer is sharded, or the optimizers
            hold none of its weights.
    """
    inner, optimizers = unwrap(model), optimizers_of(optimizer)
    refuse_flat(inner)
    units = tied_layers_of(inner)
    refuse_sharded_layers(inner)
    check_held(optimizers, units)
    return inner, optimizers, units

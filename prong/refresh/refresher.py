"""Reparametrisation of units of a model, from gathered statistics or from batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prong.convert import refuse_sharded_layers, unwrap
from prong.distributed.sharding import refuse_flat
from prong.refresh.collect import first_batches, gather, in_call_order
from prong.refresh.exchange import Refresh, assignment
from prong.refresh.optimizers import AttachedOptimizers
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
        self,
        units: Sequence[TiedLayers],
        init: str = "preserve",
        spent: set[int] | None = None,
    ) -> tuple[dict[str, LayerReport], list[str]]:
        """Reparametrise units from what their layers have gathered; reports by name, and notes.

        For `spent` see `Refresh`.
        """
        refresh = Refresh(
            self.settings, self.ranks, self.optimizers, self.dampings, self.control, init, spent
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
        self._collect(units, self.first(batches))

    def _collect(self, units: Sequence[TiedLayers], taken: Sequence[Any]) -> None:
        layers = [layer for unit in units if unit.weight.requires_grad for layer in unit.layers]
        gather(self.model, layers, taken, self.forward)

    def initialized(
        self, taken: Sequence[Any], init: str
    ) -> tuple[dict[str, LayerReport], list[str]]:
        """Reparametrise for the first time.

        Args:
            taken: what `first` gave.
            init: "balanced", "whitened" or "preserve".
        """
        if init != "preserve":
            return self._layer_by_layer(taken, init)
        self._collect(self.units, taken)
        return self.gathered(self.units)

    def _layer_by_layer(
        self, taken: Sequence[Any], init: str
    ) -> tuple[dict[str, LayerReport], list[str]]:
        """In the order of the forward pass: each layer sees what those before give."""
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

    def first(self, batches: Iterable[Any]) -> list[Any]:
        """The first batches that hold N_s examples over all ranks, on the model's device."""
        return first_batches(batches, self.samples, self.units[0].weight.device, self.ranks)


def checked(
    model: nn.Module, optimizer: Any
) -> tuple[nn.Module, AttachedOptimizers, list[TiedLayers]]:
    """The model without its wrappers, the optimizers with theirs, and the whitened layers.

    Raises:
        TypeError: if `optimizer` is none, or one that cannot run over whitened layers.
        ValueError: if the model is not whitened, a whitened layer is sharded, or the optimizers
            hold none of its weights.
    """
    inner, optimizers = unwrap(model), AttachedOptimizers(optimizer)
    refuse_flat(inner)
    units = tied_layers_of(inner)
    refuse_sharded_layers(inner)
    check_held(optimizers.stepping, units)
    return inner, optimizers, units

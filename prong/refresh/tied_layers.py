"""A unit: the layers that share one weight, and therefore one Φ. Nearly always it is one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from prong.layers.base import Whitened
from prong.linalg.dtypes import wide_dtype
from prong.linalg.layout import from_grouped
from prong.linalg.preconditioner import Dense
from prong.linalg.projection import Phi, from_canonical, to_canonical
from prong.linalg.roots import root_of_preconditioner
from prong.statistics.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor
    from torch.optim import Optimizer


@dataclass(frozen=True, eq=False)
class TiedLayers:
    """A unit: the whitened layers with the same weight tensor. One V requires one (c, U) in all.

    Attributes:
        name: qualified name of the first layer.
        layers: the layers; nearly always only one.
    """

    name: str
    layers: tuple[Whitened, ...]

    @property
    def layer(self) -> Whitened:
        """The first layer; shapes and Φ are the same in all."""
        return self.layers[0]

    @property
    def weight(self) -> nn.Parameter:
        """V, or W in a preconditioned unit."""
        return self.layer.weight

    @property
    def biases(self) -> tuple[nn.Parameter, ...]:
        """The distinct d of the layers."""
        unique = {id(b): b for b in (layer.bias for layer in self.layers) if b is not None}
        return tuple(unique.values())

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The weight and the distinct d."""
        return (self.weight, *self.biases)

    @property
    def centred(self) -> bool:
        """Whether every layer can take up −W c in a bias."""
        return all(layer.centred for layer in self.layers)

    def wide_phi(self) -> Phi:
        """Return a copy of Φ in the widest type of the device."""
        layer = self.layer
        dtype = wide_dtype(layer.weight.device)
        output = layer.output_whitener
        held = layer.preconditioner
        if held is None:
            whitener = layer.whitener.to(dtype, copy=True)
        else:
            whitener = root_of_preconditioner(held.to(dtype).whole())
        return Phi(
            layer.mean.to(dtype, copy=True),
            whitener,
            output=None if output is None else output.to(dtype, copy=True),
        )

    def moments(self, kind: str = "moments", *, widened: bool = True) -> Moments | None:
        """Return the merged moments of all layers; None if none are gathered.

        Args:
            kind: "moments" of the inputs or "backward_moments" of the outputs' gradients.
            widened: True returns a copy in the widest type; False returns a single layer's own
                moments, after all batches were added.
        """
        if not widened and len(self.layers) == 1:
            only: Moments | None = getattr(self.layer, kind)
            return None if only is None else only.settle()
        pooled: Moments | None = None
        for layer in self.layers:
            own: Moments | None = getattr(layer, kind)
            if own is None:
                continue
            wide = own.widened()
            if pooled is None:
                pooled = wide
            else:
                pooled.merge(wide)
        return pooled

    @torch.no_grad()
    def move(self, old: Phi, new: Phi) -> bool:
        """Install a new Φ and transform the parameters; the function stays (lines 7 and 10).

        Returns:
            False, without any change, if the new parameters would not be finite.
        """
        layer, dtype = self.layer, new.whitener.dtype
        grouped = layer.grouped_weight(dtype)
        moved: list[tuple[nn.Parameter, Tensor]] = []
        if layer.preconditioned:
            # W is the parameter and stays. Only d changes, for the new mean.
            shift = grouped.sum(2) @ (new.mean - old.mean).unsqueeze(-1)
            for bias in self.biases:
                outer = bias.to(dtype).reshape(layer.feature_groups, -1) + shift.squeeze(-1)
                moved.append((bias, outer.reshape(-1)))
            return self._write(moved, new)
        weight, _ = from_canonical(to_canonical(grouped, None, old)[0], None, new)
        moved.append((self.weight, from_grouped(weight, self.weight.shape, layer.TRANSPOSED)))
        for bias in self.biases:
            outer = bias.to(dtype).reshape(layer.feature_groups, -1)
            _, carried = from_canonical(*to_canonical(grouped, outer, old), new)
            assert carried is not None
            moved.append((bias, carried.reshape(-1)))
        return self._write(moved, new)

    def _write(self, moved: list[tuple[nn.Parameter, Tensor]], new: Phi) -> bool:
        if not all(bool(torch.isfinite(value.to(p.dtype)).all()) for p, value in moved):
            return False
        for parameter, value in moved:
            parameter.copy_(value)
        self.install(new)
        return True

    @torch.no_grad()
    def keep_numbers(self, old: Phi, new: Phi) -> None:
        """Install Φ and keep the numbers in V; in a preconditioned unit W = V U changes with U."""
        if self.layer.preconditioned:
            grouped = self.layer.grouped_weight(new.whitener.dtype)
            whitened, _ = from_canonical(grouped, None, old)
            moved, _ = to_canonical(whitened, None, new)
            shape, transposed = self.weight.shape, self.layer.TRANSPOSED
            self.weight.copy_(from_grouped(moved, shape, transposed))
        self.install(new)

    @torch.no_grad()
    def install(self, new: Phi) -> None:
        """Replace Φ without changing the parameters."""
        for layer in self.layers:
            layer.mean.copy_(new.mean)
            if layer.precision_matrix is None:
                layer.whitener.copy_(new.whitener)
            else:
                full = new.whitener.transpose(1, 2) @ new.whitener
                layer.put_preconditioner(Dense(full))
            if layer.output_whitener is not None and new.output is not None:
                layer.output_whitener.copy_(new.output)


def tied_layers_of(model: nn.Module, leaving_out: Collection[nn.Module] = ()) -> list[TiedLayers]:
    """Return the units of a whitened model, without some layers, in the order of its modules."""
    shared: dict[int, list[tuple[str, Whitened]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Whitened) and module not in leaving_out:
            shared.setdefault(id(module.weight), []).append((name, module))
    return [
        TiedLayers(members[0][0], tuple(layer for _, layer in members))
        for members in shared.values()
    ]


def check_held(optimizers: Sequence[Optimizer], units: Sequence[TiedLayers]) -> None:
    """Raise ValueError if the model has no whitened layer or the optimizers hold none of them."""
    if not units:
        raise ValueError("model: it has no whitened layer; call prong.whiten first")
    held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    if not any(id(unit.weight) in held for unit in units):
        raise ValueError(
            "optimizer: it holds none of the model's whitened weights; "
            "create it from the parameters of this model"
        )

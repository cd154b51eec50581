"""Averages of W and b over a training whose coordinates move."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from prong.convert import fold, unwrap
from prong.layers.base import Whitened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

_VERSION = 1
_KINDS = ("parameters", "buffers")


def average(model: nn.Module, decay: float | None = 0.999, *, use_buffers: bool = False) -> Average:
    """Average the parameters of a whitened model in plain coordinates.

    Averages of V and d, as `torch.optim.swa_utils.AveragedModel` would take them, mean nothing once
    Φ moves. Here W, b and all other parameters are averaged, as those of `prong.fold(model)` would
    be at every update, without a copy of the model.

    Args:
        model: a whitened model, also wrapped by `torch.compile` or DistributedDataParallel.
        decay: of an exponential moving average, 0 ≤ decay < 1; None for the equal average of all
            updates.
        use_buffers: whether floating buffers (running means) are averaged too; they are those of
            the last update otherwise, as integers always are.

    Returns:
        The average; call its `update` after every optimizer step that counts, and `fold` for a
        plain model with the averages.

    Raises:
        TypeError: if `decay` is not a number.
        ValueError: if it is out of range, or the model has no whitened layer.
    """
    return Average(model, decay, use_buffers=use_buffers)


class Average:
    """Averages of a whitened model's canonical parameters; made by `average`.

    It can be copied and stored together with its model. What it holds lies on the devices of the
    parameters, also after they were moved, in float32 at least.

    Attributes:
        model: the model without its wrappers.
        decay: see `average`.
        use_buffers: see `average`.
        updates: how many updates were made.
    """

    def __init__(self, model: nn.Module, decay: float | None, *, use_buffers: bool = False) -> None:
        """Begin without any update."""
        if decay is not None:
            if isinstance(decay, bool) or not isinstance(decay, (int, float)):
                raise TypeError(f"decay={decay!r}: a number or None is needed")
            if not (math.isfinite(decay) and 0 <= decay < 1):
                raise ValueError(f"decay={decay!r}: at least 0 and below 1 is allowed")
        self.model = unwrap(model)
        if not any(isinstance(module, Whitened) for module in self.model.modules()):
            raise ValueError("model: it has no whitened layer; call prong.whiten first")
        self.decay, self.use_buffers, self.updates = decay, use_buffers, 0
        self._parameters: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present parameters into the average; the first update takes them as they are.

        Raises:
            ValueError: if the model has other parameters than at the update before.
        """
        parameters, buffers = _canonical(self.model), _plain_buffers(self.model)
        weight = 1 / (self.updates + 1) if self.decay is None else 1 - self.decay
        self._parameters = _merged(self._parameters, parameters, weight, self.updates == 0)
        if not self.use_buffers:
            self._buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        else:
            self._buffers = _merged(self._buffers, buffers, weight, self.updates == 0)
        self.updates += 1

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """A new plain model with the averages, in the types of the parameters.

        Raises:
            ValueError: if no update was made yet.
        """
        if not self.updates:
            raise ValueError("average: no update was made yet; call update first")
        plain = fold(self.model)
        places: list[dict[str, Tensor]] = [
            dict(plain.named_parameters()),
            dict(plain.named_buffers()),
        ]
        for held, targets in zip((self._parameters, self._buffers), places, strict=True):
            _check_names(held, targets)
            for name, value in held.items():
                targets[name].copy_(value)
        return plain

    def state_dict(self) -> dict[str, Any]:
        """`{"meta": plain numbers, "tensors": copies of the averages by name}`."""
        held = zip(_KINDS, (self._parameters, self._buffers), strict=True)
        return {
            "meta": {"version": _VERSION, "updates": self.updates, "decay": self.decay},
            "tensors": {
                f"{kind}.{name}": value.clone()
                for kind, tensors in held
                for name, value in tensors.items()
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, decay included.

        Raises:
            ValueError: if the state is of another version or of another model; nothing is changed
                then.
        """
        meta = state["meta"]
        if meta.get("version") != _VERSION:
            raise ValueError(f"state: version {meta.get('version')!r}; allowed is {_VERSION}")
        found: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
        for key, value in state["tensors"].items():
            kind, _, name = key.partition(".")
            if kind not in found:
                raise ValueError(f"state: {key!r} is no average")
            found[kind][name] = value
        places: list[dict[str, Tensor]] = [
            dict(self.model.named_parameters()),
            _plain_buffers(self.model),
        ]
        for tensors, targets in zip(found.values(), places, strict=True):
            if meta["updates"]:
                _check_names(tensors, targets)
            for name, value in tensors.items():
                tensors[name] = value.to(targets[name].device, copy=True)
        self.updates, self.decay = int(meta["updates"]), meta["decay"]
        self._parameters, self._buffers = found["parameters"], found["buffers"]


def _canonical(model: nn.Module) -> dict[str, Tensor]:
    """What the parameters of the folded model would be, by name."""
    folded: dict[int, Tensor] = {}
    for module in model.modules():
        if isinstance(module, Whitened):
            weight, bias = module.fold()
            folded[id(module.weight)] = weight
            if module.bias is not None and bias is not None:
                folded[id(module.bias)] = bias
    return {name: folded.get(id(p), p).detach() for name, p in model.named_parameters()}


def _plain_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that the folded model has too."""
    phi = {id(b) for m in model.modules() if isinstance(m, Whitened) for b in m.phi_buffers()}
    return {name: buffer for name, buffer in model.named_buffers() if id(buffer) not in phi}


def _merged(
    held: dict[str, Tensor], new: dict[str, Tensor], weight: float, first: bool
) -> dict[str, Tensor]:
    """The averages with `new` in them by a share of `weight`."""
    if not first:
        _check_names(held, new)
    merged = {}
    for name, value in new.items():
        if not (value.is_floating_point() or value.is_complex()):
            merged[name] = value.clone()
            continue
        wide = torch.promote_types(value.dtype, torch.float32)
        if first:
            merged[name] = value.to(wide, copy=True)
        else:
            before = held[name].to(value.device, wide)
            merged[name] = before.lerp_(value.to(wide), weight)
    return merged


def _check_names(held: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    shapes = {name: value.shape for name, value in targets.items()}
    differing = {name for name, value in held.items() if shapes.get(name) != value.shape}
    differing |= set(shapes) - set(held)
    if differing:
        raise ValueError(
            f"average: {min(differing)} is of another model, or was changed since the last update"
        )

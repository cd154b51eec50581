"""Passes over data that only gather statistics, without gradients or changes of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prong.layers.base import Whitened
from prong.statistics.moments import Moments

if TYPE_CHECKING:
    from prong.distributed.ranks import Ranks
    from prong.refresh.tied_layers import TiedLayers

Forward = Callable[[nn.Module, Any], object]


class _Reached(Exception):
    """Raised to stop a forward pass once all layers of interest were called."""


def new_moments(layer: Whitened) -> Moments:
    """Create empty moments for a layer's input."""
    groups, features = layer.mean.shape
    return Moments(groups, features, dtype=layer.mean.dtype, device=layer.mean.device)


def new_backward_moments(layer: Whitened) -> Moments:
    """Create empty moments for the gradient of a layer's output."""
    assert layer.output_whitener is not None
    groups, features = layer.output_whitener.shape[:2]
    return Moments(groups, features, dtype=layer.mean.dtype, device=layer.mean.device)


def default_forward(model: nn.Module, batch: Any) -> object:
    """Run a model on a batch: a tensor, a sequence that begins with the input, or a mapping."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, Sequence):
        return model(batch[0])
    return model(batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on `device`, also those in mappings, lists and tuples."""
    if torch.is_tensor(batch):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [to_device(value, device) for value in batch]
    return batch


def _examples(batch: Any) -> int:
    if torch.is_tensor(batch):
        return int(batch.shape[0]) if batch.dim() else 1
    values: Iterable[Any] = batch.values() if isinstance(batch, Mapping) else batch
    for value in values:
        if torch.is_tensor(value):
            return int(value.shape[0]) if value.dim() else 1
    raise TypeError(f"batches: a batch of type {type(batch).__name__} holds no tensor")


def first_batches(
    batches: Iterable[Any], examples: int, device: torch.device, ranks: Ranks | None = None
) -> list[Any]:
    """Return the first batches that hold `examples` examples, moved to `device`.

    All ranks take the same number of batches. They take one batch each at a time, until together
    they hold `examples` examples or one rank has no more batches. One process would take the same
    from the joined batches.

    Args:
        batches: the batches of this rank.
        examples: number of examples needed, over all ranks.
        device: the device to move them to.
        ranks: the ranks that decide together; None for this process alone.

    Raises:
        TypeError: if a batch holds no tensor.
        ValueError: on all ranks, if at least one rank has no batch.
    """
    kept: list[Any] = []
    number, source = 0.0, iter(batches)
    while number < examples:
        batch = next(source, source)
        ended = batch is source
        missing, found = [float(ended), 0.0 if ended else float(_examples(batch))]
        if ranks is not None:
            missing, found = ranks.together([missing, found], device)
        if missing:
            break
        kept.append(to_device(batch, device))
        number += found
    if not kept:
        alone = ranks is None or ranks.size == 1
        several = "" if alone else " on at least one of the ranks"
        raise ValueError(f"batches: there is none{several}; at least one is needed")
    return kept


@contextmanager
def _untouched(model: nn.Module, gathering: Sequence[Whitened] = ()) -> Iterator[None]:
    """Run in training mode without gradients; only the statistics of `gathering` change.

    Buffers (such as running averages) and modes are restored afterwards. If the model is already in
    training mode, no mode is changed, so a batch normalisation in evaluation mode stays there.
    """
    others = [m for m in model.modules() if isinstance(m, Whitened)]
    held = [(layer, layer.moments, layer.variances, layer.aside) for layer in others]
    for layer in others:
        layer.variances = layer.aside = None
        layer.without_gradients = layer in gathering
        if layer not in gathering:
            layer.moments = None
    modes = [(module, module.training) for module in model.modules()]
    phi = {id(b) for m in model.modules() if isinstance(m, Whitened) for b in m.buffers(False)}
    buffers = [(b, b.clone()) for b in model.buffers() if id(b) not in phi]
    if not model.training:
        model.train()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, moments, variances, aside in held:
            layer.variances, layer.aside = variances, aside
            layer.without_gradients = False
            if layer not in gathering:
                layer.moments = moments
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def gather(
    model: nn.Module,
    layers: Sequence[Whitened],
    batches: Sequence[Any],
    forward: Forward,
    *,
    only_these: bool = False,
) -> None:
    """Replace the `moments` of `layers` by those of passes over `batches` in training mode.

    Args:
        model: the model that holds the layers.
        layers: the layers that gather statistics.
        batches: the batches to run.
        forward: how to run a batch.
        only_these: whether to stop each pass once all of `layers` were called, which saves the rest
            of the pass.
    """
    for layer in layers:
        layer.moments = new_moments(layer)
    waiting: set[nn.Module] = set()

    def arrived(layer: nn.Module, _: Any) -> None:
        waiting.discard(layer)
        if not waiting:
            raise _Reached

    handles = []
    if only_these:
        # A hook after the layer, so that the layer has observed its input when the pass stops.
        handles = [layer.register_forward_hook(lambda m, i, _: arrived(m, i)) for layer in layers]
    try:
        with _untouched(model, layers):
            for batch in batches:
                waiting.update(layers)
                try:
                    forward(model, batch)
                except _Reached:
                    continue
    finally:
        for handle in handles:
            handle.remove()


def call_order(
    model: nn.Module, layers: Sequence[Whitened], batch: Any, forward: Forward
) -> list[Whitened]:
    """Return the layers in the order of a forward pass, without those that are not called."""
    order: list[Whitened] = []

    def called(layer: nn.Module, _: Any) -> None:
        if layer not in order and isinstance(layer, Whitened):
            order.append(layer)

    handles = [layer.register_forward_pre_hook(called) for layer in layers]
    try:
        with _untouched(model):
            forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return order


def in_call_order(
    model: nn.Module,
    units: Sequence[TiedLayers],
    batch: Any,
    forward: Forward,
    ranks: Ranks,
) -> list[tuple[TiedLayers, list[Whitened]]]:
    """Return units in the order of the first rank's forward pass; units that are not called last.

    Args:
        model: the model that holds the units.
        units: all units of the model.
        batch: the batch to run.
        forward: how to run a batch.
        ranks: the ranks, which all use the first rank's order.

    Returns:
        Each unit, with those of its layers that are called.
    """
    layers = [layer for unit in units for layer in unit.layers]
    order = call_order(model, layers, batch, forward)
    places = [order.index(layer) if layer in order else len(layers) for layer in layers]
    agreed = torch.tensor(places, device=layers[0].weight.device)
    ranks.broadcast_([agreed])
    place = dict(zip(layers, agreed.tolist(), strict=True))
    return [
        (unit, [layer for layer in unit.layers if place[layer] < len(layers)])
        for unit in sorted(units, key=lambda u: min(place[layer] for layer in u.layers))
    ]

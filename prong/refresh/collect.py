"""Passes over data that only gather statistics: no gradients, no traces left in the model."""

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
    """The forward pass came to the layer whose input was wanted."""


def new_moments(layer: Whitened) -> Moments:
    """Empty moments that fit a layer's input."""
    groups, features = layer.mean.shape
    return Moments(groups, features, dtype=layer.mean.dtype, device=layer.mean.device)


def new_backward_moments(layer: Whitened) -> Moments:
    """Empty moments that fit the gradient of a layer's output."""
    assert layer.output_whitener is not None
    groups, features = layer.output_whitener.shape[:2]
    return Moments(groups, features, dtype=layer.mean.dtype, device=layer.mean.device)


def default_forward(model: nn.Module, batch: Any) -> object:
    """Run a model on a batch: a tensor, a sequence that starts with the input, or a mapping."""
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
    """Move the first batches that hold `examples` examples to `device`; fewer if there are no more.

    Several ranks take equally many batches, one each at a time, until all of theirs together hold
    so many examples or one of them has no more: what they take is what one process would take of
    the batches put together.

    Args:
        batches: what to take from.
        examples: how many are wanted, over all ranks.
        device: where to.
        ranks: those that decide together; None for a process that decides alone.

    Raises:
        TypeError: if a batch holds no tensor.
        ValueError: if there is no batch, on one rank at least; it is raised on all.
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
    """Training mode without gradients, which leaves no trace but the statistics of `gathering`.

    Running averages and modes are put back afterwards. A model that is in training mode keeps its
    modes: a batch normalisation that its user froze stays frozen.
    """
    others = [m for m in model.modules() if isinstance(m, Whitened)]
    held = [(layer, layer.moments, layer.variances, layer.aside) for layer in others]
    for layer in others:
        layer.variances = layer.aside = None
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
    """Fill fresh `moments` of `layers` from passes over `batches` in training mode.

    Args:
        model: the model that holds the layers.
        layers: where to gather.
        batches: what to run.
        forward: how to run a batch.
        only_these: stop each pass once every one of `layers` has been called, to save the rest of
            the model.
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
        # A post-hook, so that the layer has seen its input when the pass stops.
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
    """The layers in the order of a forward pass; those never called are left out."""
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
    """Units in the order in which the first rank's forward pass calls them, never called ones last.

    Args:
        model: the model that holds the units.
        units: all of them.
        batch: what to run.
        forward: how to run it.
        ranks: those that have to agree.

    Returns:
        Each unit with those of its layers that are called.
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

"""Errors for sharded parameters, where a rank holds only a part of a weight.

Folding, whitening and the step control multiply whole weights by whole matrices. Most of them would
give a wrong result for a shard without an error, so these checks raise one that names the
parameter.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

_INSTEAD = (
    "use torch.nn.parallel.DistributedDataParallel, where every rank holds the whole weight, or "
    "leave the layer out (whiten's exclude=) and shard only modules that stay plain"
)


def plain_kind(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module had before FSDP2 replaced it by a subclass."""
    kind = type(module)
    sharding = _loaded("torch.distributed.fsdp", "FSDPModule")
    if sharding is not None and kind.__bases__[0] is sharding and len(kind.__bases__) == 2:
        return kind.__bases__[1]
    return kind


def refuse_flat(model: nn.Module) -> None:
    """Raise an error for FSDP1, whose flat parameters hold parts of many layers.

    Raises:
        ValueError: if the model, or a module in it, is wrapped by FullyShardedDataParallel.
    """
    wrapper = _loaded("torch.distributed.fsdp", "FullyShardedDataParallel")
    if wrapper is None:
        return
    for name, module in model.named_modules():
        if isinstance(module, wrapper):
            raise ValueError(
                f"model: {name or 'it'} is wrapped by FullyShardedDataParallel, whose flat "
                f"parameters are parts of many weights; {_INSTEAD}"
            )


def refuse_shards(parameters: Iterable[tuple[str, Tensor | None]]) -> None:
    """Raise an error for parameters of whitened layers that are DTensors.

    Args:
        parameters: names and parameters; None is skipped.

    Raises:
        ValueError: if one of them is a DTensor: of FSDP2 or of tensor parallelism.
    """
    kind = _loaded("torch.distributed.tensor", "DTensor")
    if kind is None:
        return
    for name, parameter in parameters:
        if isinstance(parameter, kind):
            found: Any = parameter
            placements = ", ".join(str(placement) for placement in found.placements)
            raise ValueError(
                f"model: {name} is a DTensor ({placements}), as fully_shard and tensor parallelism "
                f"make them; {_INSTEAD}"
            )


def _loaded(module: str, name: str) -> Any:
    """Return a class of torch if its module is imported; if not, no object of it can exist."""
    return getattr(sys.modules.get(module), name, None)

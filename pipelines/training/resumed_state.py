"""A training's state as plain tensors and numbers, for checkpoints that resume bit by bit.

Rank 0 writes the state that is the same on all ranks (weights, Φ, optimizer, schedule, position).
Each rank writes its own running statistics, moments gathered so far, random generators and sums
since the last logged point. Another number of ranks continues with the sums of these.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Tensors = dict[str, Tensor]
_CPU, _CUDA = "rng.cpu", "rng.cuda"


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, Any], Tensors]:
    """Return an optimizer's state as plain values and as tensors named `parameter.key`."""
    state = optimizer.state_dict()
    tensors: Tensors = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if torch.is_tensor(value):
                tensors[f"{index}.{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    return {"groups": state["param_groups"], "plain": plain}, tensors


def unpack_optimizer(optimizer: Optimizer, meta: Mapping[str, Any], tensors: Tensors) -> None:
    """Restore an optimizer from the result of `pack_optimizer`."""
    state: dict[int, dict[str, Any]] = {}
    for index, values in meta["plain"].items():
        state.setdefault(int(index), {}).update(values)
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        # A copy in its own memory: tensors in a file's memory are not aligned, and the rounding of
        # some products depends on the alignment.
        state.setdefault(int(index), {})[key] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": meta["groups"]})


def pack_generators(device: torch.device) -> tuple[dict[str, Any], Tensors]:
    """Return the state of every random generator of this process."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    plain = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }
    tensors = {_CPU: torch.get_rng_state()}
    if device.type == "cuda":
        tensors[_CUDA] = torch.cuda.get_rng_state(device)
    return plain, tensors


def unpack_generators(plain: Mapping[str, Any], tensors: Tensors, device: torch.device) -> None:
    """Restore the generators from the result of `pack_generators`."""
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = plain["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(tensors[_CPU].clone())
    if device.type == "cuda" and _CUDA in tensors:
        torch.cuda.set_rng_state(tensors[_CUDA].clone(), device)


def running_statistics(network: nn.Module) -> Tensors:
    """Return batch normalisation's running statistics, by name; the network's own tensors."""
    return {
        f"{name}.{key}": buffer
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for key, buffer in module.named_buffers(recurse=False)
    }


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return tensors under `prefix.name`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors whose names begin with `prefix.`, without it."""
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def average(parts: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """Return the mean over ranks of floating tensors; for other tensors, the first rank's."""
    return {
        name: torch.stack([part[name] for part in parts]).mean(0)
        if first.is_floating_point()
        else first
        for name, first in parts[0].items()
    }

"""Nested state of a training in one safetensors file, read without pickle.

Optimizers of other packages keep lists, tuples and numbers beside tensors, in dictionaries whose
keys are not all text; safetensors holds flat tensors and text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.core.files import atomic_path

_KEY = "state"


class Unsavable(Exception):
    """The state holds something that is neither a tensor nor plain."""


def save(path: Path, state: Any) -> None:
    """Write a state atomically.

    Args:
        path: The file.
        state: Tensors, numbers, text and None, in dictionaries, lists and tuples of any nesting.

    Raises:
        Unsavable: If something else is in it.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_flat(state, tensors))
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {_KEY: text})


def load(path: Path) -> Any:
    """Return what `save` wrote; each tensor has memory of its own."""
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {})[_KEY]
        # A copy: tensors in a file's memory are not aligned, which changes some roundings.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return _nested(json.loads(text), tensors)


def _flat(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_flat(k, tensors), _flat(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flat(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    raise Unsavable(type(value).__name__)


def _nested(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {_nested(k, tensors): _nested(v, tensors) for k, v in content}
        case "list":
            return [_nested(item, tensors) for item in content]
        case "tuple":
            return tuple(_nested(item, tensors) for item in content)
        case "dtype":
            return getattr(torch, content)
        case _:
            raise ValueError(f"{kind!r}: not part of a state")

"""`whiten` puts a model into whitened coordinates; `fold` turns it back into a plain model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from prong.distributed.sharding import plain_kind, refuse_flat, refuse_shards
from prong.layers.base import Whitened
from prong.layers.conv1d import learn_conv1d
from prong.layers.twins import TWINS, adopt, release
from prong.reasons import CHOSEN, plain_reasons
from prong.share_whitened import tell
from prong.wrappers import watch_averaging

Selector = str | Iterable[str] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class LayerStatus:
    """Whether one module that holds parameters is whitened, and if not, why.

    Attributes:
        name: qualified name in the model.
        kind: class name of the module.
        whitened: True if it runs in whitened coordinates.
        reason: why it is not whitened; empty if it is.
    """

    name: str
    kind: str
    whitened: bool
    reason: str


def whiten(
    model: nn.Module, *, include: Selector | None = None, exclude: Selector | None = None
) -> nn.Module:
    """Turn the dense and convolutional layers of a model into whitened twins, in place.

    The model computes the same function (U = I, c = 0: line 3 of Algorithm 1) and keeps its
    Parameter objects. Hooks, references to submodules and existing optimizers remain valid.
    `coverage` lists the modules that stay plain, and why; the same is logged ("prong", INFO). If
    less than half of the parameters of dense and convolutional layers is whitened, and neither
    `include` nor `exclude` is given, there is a UserWarning.

    Args:
        model: any module; nested and user-written modules are searched.
        include: the layers to whiten: a name or glob pattern, several of them, or a predicate
            `(name, module) -> bool`. By default, every layer that can be whitened.
        exclude: the layers that stay plain, in the same form. By default, none.

    Returns:
        The same model.

    Raises:
        TypeError: if `model` is not a module, or `include` or `exclude` is neither names nor a
            predicate.
        ValueError: if the model is already whitened, a name matches no module, no layer can be
            whitened, or a weight to be whitened is sharded (FSDP, tensor parallelism).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: a torch.nn.Module is needed")
    if any(isinstance(module, Whitened) for module in model.modules()):
        raise ValueError("model: it is already whitened; fold it first")
    refuse_flat(model)
    learn_conv1d(model)
    names = [name for name, _ in model.named_modules()]
    chosen, left_out = _predicate("include", include, names), _predicate("exclude", exclude, names)
    for name, module in model.named_modules():
        if plain_kind(module) not in TWINS:
            continue
        if include is not None and not chosen(name, module):
            setattr(module, CHOSEN, "not among the included layers")
        elif exclude is not None and left_out(name, module):
            setattr(module, CHOSEN, "excluded")
        elif type(module) not in TWINS:
            refuse_shards(_parameters(name, module))
    reasons = plain_reasons(model)
    for name, module in model.named_modules():
        if reasons.get(name) == "":
            refuse_shards(_parameters(name, module))
    ready = [module for name, module in model.named_modules() if reasons.get(name) == ""]
    if not ready:
        listed = "; ".join(f"{name or 'model'}: {reason}" for name, reason in reasons.items())
        raise ValueError(f"model: no layer can be whitened ({listed or 'no parameters'})")
    watch_averaging()
    for module in ready:
        adopt(module)
    tell(model, chosen=include is not None or exclude is not None)
    return model


def fold(model: nn.Module) -> nn.Module:
    """Return a plain model that computes the same function: apply P_Φ⁻¹ to every whitened layer.

    Args:
        model: a whitened model, which may be wrapped by `torch.compile` or
            DistributedDataParallel. It is not changed.

    Returns:
        A new model of plain layers with the attribute names and state-dict keys that it had before
        `whiten`.
    """
    source = unwrap(model)
    # `prune` and `weight_norm` keep the weight that they compute as an attribute with a graph,
    # which deepcopy refuses. The next forward pass computes it anew.
    computed = {
        id(value): value.detach().clone()
        for module in source.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    plain = copy.deepcopy(source, computed)
    release([module for module in plain.modules() if isinstance(module, Whitened)])
    for module in plain.modules():
        module.__dict__.pop(CHOSEN, None)
    return plain


def unwrap(model: nn.Module) -> nn.Module:
    """Remove the wrappers of `torch.compile` and DistributedDataParallel, in any order."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Return whether `torch.compile` was called on a model or on a model inside its wrappers."""
    while True:
        if getattr(model, "_compiled_call_impl", None) is not None:
            return True
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            return True
        if not isinstance(model, nn.parallel.DistributedDataParallel):
            return False
        model = model.module


def coverage(model: nn.Module) -> list[LayerStatus]:
    """List every module that holds parameters itself, and say whether it is whitened or why not.

    Args:
        model: a whitened or a plain model. For a plain one, an empty `reason` means that `whiten`
            would whiten the module.
    """
    reasons = plain_reasons(model)
    return [
        LayerStatus(name, type(module).__name__, isinstance(module, Whitened), reasons[name])
        for name, module in model.named_modules()
        if name in reasons
    ]


def refuse_sharded_layers(model: nn.Module) -> None:
    """Raise an error if the weight of a whitened layer is sharded (FSDP, tensor parallelism).

    Raises:
        ValueError: if a whitened layer is sharded.
    """
    for name, module in model.named_modules():
        if isinstance(module, Whitened):
            refuse_shards(_parameters(name, module))


def _parameters(name: str, module: nn.Module) -> list[tuple[str, nn.Parameter | None]]:
    prefix = f"{name}." if name else ""
    return [(prefix + own, parameter) for own, parameter in module._parameters.items()]


def _predicate(
    argument: str, selector: Selector | None, names: list[str]
) -> Callable[[str, nn.Module], bool]:
    if selector is None:
        return lambda name, module: False
    if callable(selector):
        return selector
    patterns = [selector] if isinstance(selector, str) else list(selector)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{argument}={pattern!r}: names, glob patterns or a predicate are allowed"
            )
        if not any(fnmatchcase(name, pattern) for name in names):
            allowed = ", ".join(name for name in names if name)
            raise ValueError(
                f"{argument}={pattern!r}: no module has this name; the names are {allowed}"
            )
    return lambda name, module: any(fnmatchcase(name, pattern) for pattern in patterns)

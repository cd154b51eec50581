"""`whiten` puts a model into whitened coordinates; `fold` turns it back into a plain model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from prong.distributed.sharding import plain_kind, refuse_flat, refuse_shards
from prong.layers.base import Whitened
from prong.layers.twins import TWINS, adopt, release

Selector = str | Iterable[str] | Callable[[str, nn.Module], bool]
_REASON = "_prong_reason"


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
    `coverage` lists the modules that stay plain, and why.

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
    names = [name for name, _ in model.named_modules()]
    chosen, left_out = _predicate("include", include, names), _predicate("exclude", exclude, names)
    for name, module in model.named_modules():
        if plain_kind(module) not in TWINS:
            continue
        if include is not None and not chosen(name, module):
            setattr(module, _REASON, "not among the included layers")
        elif exclude is not None and left_out(name, module):
            setattr(module, _REASON, "excluded")
        elif type(module) not in TWINS:
            refuse_shards(_parameters(name, module))
    reasons = _reasons(model)
    for name, module in model.named_modules():
        if reasons.get(name) == "":
            refuse_shards(_parameters(name, module))
    ready = [module for name, module in model.named_modules() if reasons.get(name) == ""]
    if not ready:
        listed = "; ".join(f"{name or 'model'}: {reason}" for name, reason in reasons.items())
        raise ValueError(f"model: no layer can be whitened ({listed or 'no parameters'})")
    for module in ready:
        adopt(module)
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
    plain = copy.deepcopy(unwrap(model))
    release([module for module in plain.modules() if isinstance(module, Whitened)])
    for module in plain.modules():
        module.__dict__.pop(_REASON, None)
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
    reasons = _reasons(model)
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


def _reasons(model: nn.Module) -> dict[str, str]:
    """Map names to the reason why a module stays plain; empty if it is or can be whitened."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(module)
    fast = {
        child
        for parent in model.modules()
        if isinstance(parent, nn.TransformerEncoderLayer)
        for child in (parent.linear1, parent.linear2)
    }
    own = {
        module: _own_reason(module, module in fast)
        for module in model.modules()
        if any(parameter is not None for parameter in module._parameters.values())
        or isinstance(module, tuple(TWINS))
    }
    return {
        name: own[module] or _tied_reason(module, owners, own)
        for name, module in model.named_modules()
        if module in own
    }


def _own_reason(module: nn.Module, fast: bool) -> str:
    """Return the module's own reason to stay plain, without regard to other modules."""
    if isinstance(module, Whitened):
        return ""
    kind = type(module)
    weight = module._parameters.get("weight")
    if type(weight).__name__ == "UninitializedParameter":
        return "its weight has no shape yet; run one batch before whitening"
    if kind not in TWINS:
        if plain_kind(module) in TWINS:
            return str(module.__dict__.get(_REASON, "its weight is sharded by fully_shard"))
        if isinstance(module, tuple(TWINS)):
            if nn.utils.parametrize.is_parametrized(module):
                return "its weight is computed from other parameters (a parametrization)"
            return f"{kind.__name__} is a subclass that may use its weight in its own way"
        return f"{kind.__name__} is not a dense or convolutional layer"
    if _REASON in module.__dict__:
        return str(module.__dict__[_REASON])
    if weight is None:
        return "its weight is computed from other parameters (a parametrization)"
    if not weight.is_floating_point():
        return f"its weight is of {weight.dtype}, which is not a real floating type"
    if weight.numel() == 0:
        return "its weight is empty"
    if fast:
        return "nn.TransformerEncoderLayer reads its weight directly when it predicts"
    return ""


def _tied_reason(
    module: nn.Module, owners: dict[int, list[nn.Module]], own: dict[nn.Module, str]
) -> str:
    """Return a reason to stay plain that lies in the modules that share its parameters."""
    if isinstance(module, Whitened):
        return ""
    weight, bias = module._parameters["weight"], module._parameters["bias"]
    for other in owners[id(weight)]:
        grouping = getattr(other, "groups", 1) == getattr(module, "groups", 1)
        if own[other] or type(other) is not type(module) or not grouping:
            return f"its weight is tied to a {type(other).__name__} that has no common whitener"
    for other in owners.get(id(bias), ()):
        if other._parameters.get("weight") is not weight:
            return f"its bias is tied to a {type(other).__name__} with another weight"
    return ""

"""`whiten` and `fold`: into whitened coordinates, and back to a plain model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

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
    """Where one module that holds parameters stands.

    Attributes:
        name: qualified name in the model.
        kind: class name of the module.
        whitened: whether it runs in whitened coordinates.
        reason: why it does not; empty if it does.
    """

    name: str
    kind: str
    whitened: bool
    reason: str


def whiten(
    model: nn.Module, *, include: Selector | None = None, exclude: Selector | None = None
) -> nn.Module:
    """Turn the dense and convolutional layers of a model into whitened twins, in place.

    The function and the Parameter objects stay (U = I, c = 0: line 3 of Algorithm 1), so hooks,
    references to submodules and optimizers made before remain valid. What stays plain, and why,
    is listed by `coverage` and logged ("prong", INFO). If less than half of the parameters of dense
    and convolutional layers is whitened, and neither `include` nor `exclude` is given, there is a
    UserWarning.

    Args:
        model: any module; nested and user-written modules are searched.
        include: which layers to whiten: a name or glob pattern, several of them, or a predicate
            `(name, module) -> bool`. All that can be by default.
        exclude: which layers to leave alone, likewise.

    Returns:
        The same model.

    Raises:
        TypeError: if `model` is not a module, or a selector is neither names nor a predicate.
        ValueError: if a name matches no module, nothing is left to whiten, or a weight that would
            be whitened is sharded (FSDP, tensor parallelism).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: a torch.nn.Module is needed")
    if any(isinstance(module, Whitened) for module in model.modules()):
        raise ValueError("model: it is whitened already; fold it first")
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
        raise ValueError(f"model: nothing in it can be whitened ({listed or 'no parameters'})")
    watch_averaging()
    for module in ready:
        adopt(module)
    tell(model, chosen=include is not None or exclude is not None)
    return model


def fold(model: nn.Module) -> nn.Module:
    """Give the plain model that computes the same function: P_Φ⁻¹ in every whitened layer.

    Args:
        model: a whitened model, also one wrapped by `torch.compile` or DistributedDataParallel. It
            is not changed.

    Returns:
        A new model of plain layers with the attribute names and state-dict keys that it had before
        `whiten`.
    """
    plain = copy.deepcopy(unwrap(model))
    release([module for module in plain.modules() if isinstance(module, Whitened)])
    for module in plain.modules():
        module.__dict__.pop(CHOSEN, None)
    return plain


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and DistributedDataParallel, in any order."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` has been called on a model, or on one that it wraps."""
    while True:
        if getattr(model, "_compiled_call_impl", None) is not None:
            return True
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            return True
        if not isinstance(model, nn.parallel.DistributedDataParallel):
            return False
        model = model.module


def coverage(model: nn.Module) -> list[LayerStatus]:
    """List every module that holds parameters of its own: whitened, or plain and why.

    Args:
        model: a model, whitened or not yet; before `whiten` the list says what would be whitened.
    """
    reasons = plain_reasons(model)
    return [
        LayerStatus(name, type(module).__name__, isinstance(module, Whitened), reasons[name])
        for name, module in model.named_modules()
        if name in reasons
    ]


def refuse_sharded_layers(model: nn.Module) -> None:
    """Refuse whitened layers whose weight is sharded (FSDP, tensor parallelism).

    Raises:
        ValueError: if there is one.
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
                f"{argument}={pattern!r}: no module has this name; there are {allowed}"
            )
    return lambda name, module: any(fnmatchcase(name, pattern) for pattern in patterns)

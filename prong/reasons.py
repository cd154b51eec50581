"""Why a module stays plain when a model is whitened."""

from __future__ import annotations

from torch import nn

from prong.distributed.sharding import plain_kind
from prong.layers.base import Whitened
from prong.layers.conv1d import learn_conv1d
from prong.layers.twins import TWINS

# The attribute in which `whiten` notes that its caller left a layer out.
CHOSEN = "_prong_reason"
_PEFT_MODELS = {"PeftModel", "PeftMixedModel", "BaseTuner"}


def plain_reasons(model: nn.Module) -> dict[str, str]:
    """By name, why a module with parameters stays plain; empty if it is or can be whitened."""
    learn_conv1d(model)
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
    adapted = adapted_by_peft(model)
    own = {
        module: _own_reason(module, module in fast, module in adapted)
        for module in model.modules()
        if any(parameter is not None for parameter in module._parameters.values())
        or isinstance(module, tuple(TWINS))
    }
    return {
        name: own[module] or _tied_reason(module, owners, own)
        for name, module in model.named_modules()
        if module in own
    }


def adapted_by_peft(model: nn.Module) -> set[nn.Module]:
    """The modules inside adapters of peft (LoRA and others), which read weights when they merge."""
    inside: set[nn.Module] = set()
    for module in model.modules():
        kinds = type(module).__mro__
        adapter = any(kind.__module__.startswith("peft.") for kind in kinds)
        if adapter and not any(kind.__name__ in _PEFT_MODELS for kind in kinds):
            inside.update(module.modules())
    return inside


def _own_reason(module: nn.Module, fast: bool, adapted: bool) -> str:
    """Why a module stays plain whatever the others do."""
    if isinstance(module, Whitened):
        return ""
    kind = type(module)
    weight = module._parameters.get("weight")
    if type(weight).__name__ == "UninitializedParameter":
        return "its weight has no shape yet; run one batch before whitening"
    if kind not in TWINS:
        if plain_kind(module) in TWINS:
            return str(module.__dict__.get(CHOSEN, "its weight is sharded by fully_shard"))
        if isinstance(module, tuple(TWINS)):
            if nn.utils.parametrize.is_parametrized(module):
                return "its weight is computed from other parameters (a parametrization)"
            return f"{kind.__name__} is a subclass that may use its weight in its own way"
        return f"{kind.__name__} is not a dense or convolutional layer"
    if CHOSEN in module.__dict__:
        return str(module.__dict__[CHOSEN])
    if weight is None:
        return "its weight is computed from other parameters (a parametrization)"
    if not weight.is_floating_point():
        return f"its weight is of {weight.dtype}, which is not a real floating type"
    if weight.numel() == 0:
        return "its weight is empty"
    if "bias" not in module._parameters:
        return "its bias is computed from other parameters (pruning or a parametrization)"
    if adapted:
        return "it is part of an adapter of peft, which reads weights directly when it merges"
    if fast:
        return "nn.TransformerEncoderLayer reads its weight directly when it predicts"
    return ""


def _tied_reason(
    module: nn.Module, owners: dict[int, list[nn.Module]], own: dict[nn.Module, str]
) -> str:
    """Why a module stays plain because of the modules that share its parameters."""
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

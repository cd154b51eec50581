"""Loads a released version's weights into a new network, before it is whitened.

The weights are those of the plain network (W, b and the statistics of batch normalisation), so a
training by any method can start from one by any other, as far as the network is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pipelines.core.config import TrainConfig
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card
from pipelines.training import network as networks
from pipelines.training.start_files import KEY, NoStart, read, weights_file

_DATAS_OWN = ("mean", "deviation")
"""Buffers that describe the data, not what was learnt from them."""
_SHOWN = 4


@dataclass(frozen=True)
class WarmStart:
    """What a training starts from.

    Attributes:
        said: In one line, for people.
        taken: Whether weights were loaded.
    """

    said: str
    taken: bool


def started(
    config: TrainConfig, spec: networks.NetworkSpec, prepared: Path
) -> tuple[nn.Module, WarmStart | None]:
    """Return a network as it is trained, with the weights that `train.checkpoint_from` names.

    Args:
        config: The settings of the training.
        spec: The network's specification.
        prepared: The prepared data, in the checkout that holds `data/start`.

    Returns:
        The network, whitened if the method whitens, and what was loaded; None if nothing is asked.

    Raises:
        UserError: If the network cannot be made, or the weights were not brought, are damaged, or
            do not fit.
    """
    plain = networks.plain(spec, prepared)
    found = _load(config, plain, spec, prepared)  # before it is whitened
    return networks.in_its_form(plain, spec), found


def _load(
    config: TrainConfig, network: nn.Module, spec: networks.NetworkSpec, prepared: Path
) -> WarmStart | None:
    if not config.checkpoint_from:
        return None
    root = Layout.find(prepared).root
    start = read(root, config.checkpoint_from)
    if start is None or isinstance(start, NoStart):
        return WarmStart("no version is champion yet: starts from scratch", taken=False)
    path, name = weights_file(root, start), f"version {start.version}"
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[networks.ABOUT])
        classes, weights = tuple(about["classes"]), load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{KEY} = {start.asked!r}: {path} cannot be read: {error}") from None
    fresh = fit(network, weights, classes, spec.form.classes, f"{KEY} = {start.asked!r}: {name}")
    said = f"starts from the weights of {name}"
    if fresh:
        kind = f"{len(classes)} classes then, {len(spec.form.classes)} now"
        if len(classes) == len(spec.form.classes):
            kind = "the classes are others, or in another order"
        said += f"; the last layer ({fresh.removeprefix(networks.BODY)}) is new: {kind}"
    return WarmStart(said, taken=True)


def fit(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    classes: Sequence[str],
    wanted: Sequence[str],
    who: str,
) -> str:
    """Load weights by name; the last layer stays new where the classes are not the same.

    Args:
        network: Plain; changed in place, unless this raises.
        weights: Of a plain network.
        classes: What its logits meant.
        wanted: What the network's are to mean.
        who: Whose weights these are, for messages.

    Returns:
        Name of the layer that stays new; empty if there is none.

    Raises:
        UserError: If other names or shapes differ; they are listed.
    """
    own = {k: v for k, v in network.state_dict().items() if k not in _DATAS_OWN}
    given = {k: v for k, v in weights.items() if k not in _DATAS_OWN}
    fresh = ""
    if tuple(classes) != tuple(wanted):
        fresh = _last_layer(network, len(wanted))
        for tensors in (own, given):
            for key in [key for key in tensors if fresh and key.startswith(f"{fresh}.")]:
                del tensors[key]
    wrong = [
        *(f"{k} is not among its weights" for k in own if k not in given),
        *(f"its {k} has no place" for k in given if k not in own),
        *(
            f"{k} is {list(given[k].shape)} there, {list(own[k].shape)} here"
            for k in own
            if k in given and given[k].shape != own[k].shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"{who} has another network: {'; '.join(wrong[:_SHOWN])}{more}".replace(
                networks.BODY, ""
            )
            + "; allowed: the same train.network, width and hidden, image size and channels, and a "
            "method with batch normalisation (bn, prong+) from one with it, or one without from "
            "one without"
        )
    with torch.no_grad():
        network.load_state_dict(given, strict=False)
    return fresh


def _last_layer(network: nn.Module, outputs: int) -> str:
    """Return the name of the layer that makes the logits: the last with so many outputs."""
    found = [
        name
        for name, module in network.named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor)
        and weight.ndim > 1
        and weight.shape[0] == outputs
    ]
    return found[-1] if found else ""


def announced(config: TrainConfig, layout: Layout) -> WarmStart | None:
    """Return what a training will start from, after it was tried on a network on the CPU.

    Raises:
        UserError: As `started` does.
    """
    if not config.checkpoint_from:
        return None
    spec = networks.describe(config, load_card(layout.prepared), layout.root)
    with torch.random.fork_rng(devices=[]):
        return started(config, spec, layout.prepared)[1]

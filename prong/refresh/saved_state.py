"""The state of a `Reparametrizer` for a resumed run: counts, statistics and norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from prong.refresh.collect import new_backward_moments, new_moments
from prong.refresh.window import BatchesSeen
from prong.statistics.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from prong.layers.base import Whitened
    from prong.refresh.step_control import StepControl
    from prong.refresh.tied_layers import TiedLayers
    from prong.refresh.window import Gathering

VERSION = 1
KINDS = ("moments", "backward_moments")


def pack_state(
    units: Sequence[TiedLayers],
    gathering: Gathering,
    control: StepControl,
    dampings: Mapping[str, Tensor] | None,
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Return the state of a `Reparametrizer`: `{"meta": numbers, "tensors": tensors by name}`.

    Args:
        units: all units of the model.
        gathering: the state of the window of statistics.
        control: the step control, with ‖V‖ of every unit and the highest learning rates so far.
        dampings: ε of each group by unit name, for the per-batch D; None without D.
        counts: further numbers.
    """
    tensors = pack_moments(_owners(units))
    for name, damping in (dampings or {}).items():
        tensors[f"{name}.damping"] = damping.clone()
    for name, norm in control.norms.items():
        tensors[f"{name}.weight_norm"] = norm.clone()
    meta = {
        "version": VERSION,
        **counts,
        "gathered": gathering.steps,
        "started": dict(gathering.started),
        "batches_seen": None if gathering.seen is None else vars(gathering.seen),
        "control": control.state(),
    }
    return {"meta": meta, "tensors": tensors}


def unpack_state(
    state: Mapping[str, Any],
    units: Sequence[TiedLayers],
    gathering: Gathering,
    control: StepControl,
    *,
    empirical: bool,
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Restore `gathering`, `control` and the layers from a result of `pack_state`.

    Args:
        state: the result of `pack_state`.
        units: all units of the model.
        gathering: receives its window.
        control: receives its norms and learning rates.
        empirical: whether gradients of the loss count for two-sided whitening.

    Returns:
        `steps` and `fallbacks`, and ε by unit name for the per-batch D.

    Raises:
        ValueError: if the state is of another version or of another model.
    """
    meta, tensors = state["meta"], state["tensors"]
    if meta.get("version") != VERSION:
        raise ValueError(f"state: version {meta.get('version')!r}; allowed is {VERSION}")
    dampings = {f"{unit.name}.damping": unit.name for unit in units}
    norms = {f"{unit.name}.weight_norm": unit for unit in units}
    moments = {name: value for name, value in tensors.items() if name not in {*dampings, *norms}}
    unpack_moments(_owners(units), moments, gradients_wanted=empirical)
    counts = {name: int(meta[name]) for name in ("steps", "fallbacks")}
    seen = meta.get("batches_seen")
    gathering.seen = None if seen is None else BatchesSeen(**seen)
    gathering.steps = int(meta["gathered"])
    gathering.started = {name: int(step) for name, step in meta.get("started", {}).items()}
    control.steps = counts["steps"]
    control.load(meta.get("control", {}))
    control.forget()
    for name, unit in norms.items():
        if name in tensors:
            control.measured(unit, tensors[name].to(unit.weight.device, copy=True))
    device = units[0].weight.device
    return counts, {
        dampings[name]: value.to(device, copy=True)
        for name, value in tensors.items()
        if name in dampings
    }


def _owners(units: Sequence[TiedLayers]) -> dict[str, Whitened]:
    """Return the layers by a unique name, also where several share a weight."""
    return {f"{unit.name}.{i}": layer for unit in units for i, layer in enumerate(unit.layers)}


def pack_moments(layers: Mapping[str, Whitened]) -> dict[str, Tensor]:
    """Return copies of the moments of every layer, named `layer.kind.tensor`."""
    tensors = {}
    for owner, layer in layers.items():
        for kind in KINDS:
            moments: Moments | None = getattr(layer, kind)
            if moments is not None:
                for name, value in moments.tensors().items():
                    tensors[f"{owner}.{kind}.{name}"] = value
    return tensors


def unpack_moments(
    layers: Mapping[str, Whitened], tensors: Mapping[str, Tensor], *, gradients_wanted: bool
) -> None:
    """Restore the layers' moments from `pack_moments`; layers without moments there get None.

    Raises:
        ValueError: if a name belongs to none of the layers. Then nothing is changed.
    """
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in tensors.items():
        owner, _, name = key.rpartition(".")
        owner, _, kind = owner.rpartition(".")
        if owner not in layers or kind not in KINDS or name not in Moments.TENSORS:
            raise ValueError(f"state: {key!r} belongs to no whitened layer of this model")
        found.setdefault((owner, kind), {})[name] = value
    for owner, layer in layers.items():
        layer.moments = layer.backward_moments = None
        if (owner, "moments") in found:
            layer.moments = new_moments(layer)
            layer.moments.load(found[owner, "moments"])
        if (owner, "backward_moments") in found:
            layer.backward_moments = new_backward_moments(layer)
            layer.backward_moments.load(found[owner, "backward_moments"])
            layer.gradients_wanted = gradients_wanted


def merge_moments(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Merge the moments of several ranks exactly (Chan et al. 1983).

    Args:
        parts: the "tensors" of each rank's `Reparametrizer.state_dict`, with the same names, shapes
            and types.

    Returns:
        Tensors by the same names: added counts, and the means `[groups, in]` and centred sums of
        squares `[groups, in, in]` of all samples. Tensors that are not moments are taken from the
        first rank.

    Raises:
        KeyError: if a rank lacks a name of the first rank.
    """
    merged = {name: value.clone() for name, value in parts[0].items()}
    for stem in sorted(_stems(merged)):
        total = _moments(parts[0], stem)
        for part in parts[1:]:
            total.merge(_moments(part, stem))
        for name, value in total.tensors().items():
            merged[f"{stem}.{name}"] = value
    return merged


def shared_moments(parts: Sequence[Mapping[str, Tensor]], rank: int) -> dict[str, Tensor]:
    """Return one rank's tensors after a change of the number of ranks.

    Rank 0 gets the merged moments, and the other ranks get moments of no sample, so the merged
    moments stay the same. Other tensors (a damping, the norm of a weight) are the same on every
    rank.

    Args:
        parts: as in `merge_moments`.
        rank: the new index of the rank that loads the tensors.

    Returns:
        The "tensors" for `Reparametrizer.load_state_dict` on this rank.

    Raises:
        KeyError: if a rank lacks a name of the first rank.
    """
    union = merge_moments(parts)
    if rank == 0:
        return union
    stems = _stems(union)
    return {
        name: torch.zeros_like(value) if name.rpartition(".")[0] in stems else value
        for name, value in union.items()
    }


def _stems(tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the moments, `layer.kind`."""
    return {name.rpartition(".")[0] for name in tensors if name.endswith(".scatter")}


def _moments(tensors: Mapping[str, Tensor], stem: str) -> Moments:
    scatter = tensors[f"{stem}.scatter"]
    groups, features = scatter.shape[:2]
    moments = Moments(groups, features, dtype=scatter.dtype, device=scatter.device)
    moments.load({name: tensors[f"{stem}.{name}"] for name in Moments.TENSORS})
    return moments

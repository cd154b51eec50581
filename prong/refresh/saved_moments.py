"""Statistics that are being gathered, as tensors by name, for runs resumed in mid-window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prong.refresh.collect import new_backward_moments, new_moments
from prong.statistics.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from prong.layers.base import Whitened

KINDS = ("moments", "backward_moments")


def pack_moments(layers: Mapping[str, Whitened]) -> dict[str, Tensor]:
    """Copies of the moments of every layer, named `layer.kind.tensor`."""
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
    """Give the layers what `pack_moments` took, and no moments where there were none.

    Raises:
        ValueError: if a name belongs to none of the layers; nothing is changed then.
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
    """The union of moments of several ranks, exactly (Chan et al. 1983).

    Args:
        parts: of each rank, the "tensors" of `Reparametrizer.state_dict`; the same names, shapes
            and types everywhere.

    Returns:
        The same names: counts added up, means `[groups, in]` and centred sums of squares `[groups,
        in, in]` of all samples together. What is no moment is the first rank's.

    Raises:
        KeyError: if a rank lacks a name that the first one has.
    """
    merged = {name: value.clone() for name, value in parts[0].items()}
    stems = sorted({name.rpartition(".")[0] for name in merged if name.endswith(".scatter")})
    for stem in stems:
        total = _moments(parts[0], stem)
        for part in parts[1:]:
            total.merge(_moments(part, stem))
        for name, value in total.tensors().items():
            merged[f"{stem}.{name}"] = value
    return merged


def _moments(tensors: Mapping[str, Tensor], stem: str) -> Moments:
    scatter = tensors[f"{stem}.scatter"]
    groups, features = scatter.shape[:2]
    moments = Moments(groups, features, dtype=scatter.dtype, device=scatter.device)
    moments.load({name: tensors[f"{stem}.{name}"] for name in Moments.TENSORS})
    return moments

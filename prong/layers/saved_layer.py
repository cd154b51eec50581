"""A whitened layer in a checkpoint, so that `weight` and `bias` always mean W and b.

A state dict of a whitened layer holds W and b under the names of the plain layer, V and d under
names of their own, and Φ. It can therefore be loaded into a plain layer, and averages over state
dicts are averages of W and b. Three forms are understood:

- without Φ: a plain layer's. W and b are written in the layer's present Φ.
- with Φ and without V or d: a whitened layer's of an earlier version; `weight` is V, `bias` is d.
- with Φ, and V or d: taken over as they are if V, d and Φ give W and b. If not, somebody changed
  or averaged the entries: then W and b count, and are written in the present Φ.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from prong.linalg.dtypes import wide_dtype
from prong.linalg.layout import from_grouped, to_grouped
from prong.linalg.projection import Phi, from_canonical, to_canonical

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHT, BIAS = "whitened_weight", "whitened_bias"
TOLERANCE = 100.0  # roundings of a sum


class LayerWithPhi(Protocol):
    """What is asked of a whitened layer here; see `prong.layers.base.Whitened`."""

    PHI: ClassVar[tuple[str, ...]]
    TRANSPOSED: ClassVar[bool]
    weight: nn.Parameter
    bias: nn.Parameter | None
    mean: Tensor
    output_whitener: Tensor | None
    precision_matrix: Tensor | None
    precision_damping: Tensor | None

    @property
    def feature_groups(self) -> int:
        """Number of groups."""

    @property
    def preconditioned(self) -> bool:
        """Whether W and d are the parameters."""

    def fold(self) -> tuple[Tensor, Tensor | None]:
        """W and b."""


def write_canonical(layer: LayerWithPhi, state: MutableMapping[str, Any], prefix: str) -> None:
    """Put W and b beside V and d, which `state` holds under the plain layer's names.

    A layer whose weight is computed from other parameters (pruned after `whiten`) stays as it is.
    """
    if prefix + "weight" not in state:
        return
    with torch.no_grad():
        weight, bias = layer.fold()
    if not layer.preconditioned:
        state[prefix + WEIGHT] = state[prefix + "weight"]
        state[prefix + "weight"] = weight.detach()
    if bias is not None and prefix + "bias" in state:
        state[prefix + BIAS] = state[prefix + "bias"]
        state[prefix + "bias"] = bias.detach()


@torch.no_grad()
def read_canonical(layer: LayerWithPhi, state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries of one layer as V, d and Φ, whatever form they have.

    Args:
        layer: the layer that is to take them over; it is not changed.
        state: a state dict that holds the layer's entries, and perhaps others.
        prefix: the layer's name in it, with a dot.

    Returns:
        The entries of this layer alone, for `nn.Module._load_from_state_dict`.
    """
    own = {key: value for key, value in state.items() if key.startswith(prefix)}
    held = {name: own.get(prefix + name) for name in ("weight", "bias", *layer.PHI)}
    weight, bias = own.pop(prefix + WEIGHT, None), own.pop(prefix + BIAS, None)
    shape = layer.weight.shape
    if any(value is not None and value.shape != shape for value in (held["weight"], weight)):
        return own  # torch names the two shapes
    if held["mean"] is None and held["weight"] is None and held["bias"] is None:
        return own
    if held["mean"] is not None and weight is None and bias is None:
        return own
    inner = {
        prefix + "weight": held["weight"] if weight is None else weight,
        prefix + "bias": held["bias"] if bias is None else bias,
    }
    if held["mean"] is not None and _agree(layer, held, inner, prefix):
        own.update({key: value for key, value in inner.items() if value is not None})
        return own
    for name in layer.PHI:
        own.pop(prefix + name, None)
    own.update(_in_present_basis(layer, held["weight"], held["bias"], prefix))
    return own


def _agree(layer: LayerWithPhi, held: dict[str, Any], inner: dict[str, Any], prefix: str) -> bool:
    """Whether V, d and Φ of a checkpoint give its W and b, to rounding."""
    tensors = [value for value in (*held.values(), *inner.values()) if value is not None]
    if any(value.is_meta for value in tensors):
        return True
    device = held["mean"].device
    dtype = wide_dtype(device)
    groups, transposed = layer.feature_groups, layer.TRANSPOSED

    def wide(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(device, dtype)

    given = wide(inner[prefix + "weight"])
    outer = wide(inner[prefix + "bias"])
    if given is None:
        return False
    grouped = to_grouped(given, groups, transposed)
    whitener, mean = wide(held["whitener"]), wide(held["mean"])
    assert mean is not None
    if whitener is None:
        whitener = torch.eye(mean.shape[1], dtype=dtype, device=device).expand(groups, -1, -1)
    phi = Phi(mean, whitener, output=wide(held["output_whitener"]))
    bias = None if outer is None else outer.reshape(groups, -1)
    weight, plain = to_canonical(grouped, bias, phi)
    # What rounding of V to its type, and of the sums, can make of W.
    rounding = 4 * torch.finfo(inner[prefix + "weight"].dtype).eps
    rounding += TOLERANCE * torch.finfo(held["mean"].dtype).eps
    sizes, around = to_canonical(grouped.abs(), None if bias is None else -bias.abs(), _sizes(phi))
    size = float(sizes.max())
    pairs = [(held["weight"], from_grouped(weight, layer.weight.shape, transposed), size)]
    if plain is not None and around is not None:
        pairs.append((held["bias"], plain.reshape(-1), float(around.abs().max())))
    for wanted, found, size in pairs:
        if wanted is None or wanted.shape != found.shape:
            return False
        if not float((wanted.to(device, dtype) - found).abs().max()) <= rounding * size:
            return False
    return True


def _sizes(phi: Phi) -> Phi:
    """Φ of absolute values, to bound sums by."""
    return Phi(
        phi.mean.abs(),
        phi.whitener.abs(),
        output=None if phi.output is None else phi.output.abs(),
    )


def _in_present_basis(
    layer: LayerWithPhi, weight: Tensor | None, bias: Tensor | None, prefix: str
) -> dict[str, Tensor]:
    """W and b as V and d of the layer's present Φ; Φ is I where the layer has no numbers yet."""
    present = {name: getattr(layer, name) for name in layer.PHI}
    if layer.mean.is_meta:
        given = weight if weight is not None else bias
        assert given is not None
        present = identity_phi(layer, given.device)
    own_weight, own_bias = layer.weight, layer.bias
    if layer.mean.is_meta:
        plain_weight, plain_bias = weight, bias
    else:
        plain_weight, plain_bias = layer.fold()
        plain_weight = plain_weight if weight is None else weight
        plain_bias = plain_bias if bias is None else bias
    entries = {prefix + name: value for name, value in present.items() if value is not None}
    if plain_weight is None:
        return entries
    device, dtype = present["mean"].device, wide_dtype(present["mean"].device)
    groups, transposed = layer.feature_groups, layer.TRANSPOSED
    grouped = to_grouped(plain_weight.to(device, dtype), groups, transposed)
    outer = None
    if own_bias is not None and plain_bias is not None:
        outer = plain_bias.to(device, dtype).reshape(groups, -1)
    if present["whitener"] is None:
        # W is the parameter, and d = b + W c.
        found = grouped
        shift = (grouped.sum(2) @ present["mean"].to(dtype).unsqueeze(-1)).squeeze(-1)
        carried = None if outer is None else outer + shift
    else:
        output = present["output_whitener"]
        phi = Phi(
            present["mean"].to(dtype),
            present["whitener"].to(dtype),
            output=None if output is None else output.to(dtype),
        )
        found, carried = from_canonical(grouped, outer, phi)
    entries[prefix + "weight"] = from_grouped(found, own_weight.shape, transposed).to(
        own_weight.dtype
    )
    if carried is not None and own_bias is not None:
        entries[prefix + "bias"] = carried.reshape(-1).to(own_bias.dtype)
    return entries


def identity_phi(layer: LayerWithPhi, device: torch.device) -> dict[str, Tensor | None]:
    """Buffers of U = I, c = 0 (and R = I), in the layer's mode and types, on a device."""
    groups, features = layer.mean.shape
    dtype = layer.mean.dtype
    found: dict[str, Tensor | None] = dict.fromkeys(layer.PHI)
    found["mean"] = torch.zeros(groups, features, dtype=dtype, device=device)
    if layer.precision_matrix is None:
        found["whitener"] = torch.eye(features, dtype=dtype, device=device).repeat(groups, 1, 1)
    elif layer.precision_damping is None:
        eye = torch.eye(features, dtype=dtype, device=device)
        found["precision_matrix"] = eye.repeat(groups, 1, 1)
    else:
        found["precision_matrix"] = torch.zeros(
            layer.precision_matrix.shape, dtype=dtype, device=device
        )
        found["precision_damping"] = torch.ones(groups, dtype=dtype, device=device)
    if layer.output_whitener is not None:
        outputs = layer.output_whitener.shape[1]
        eye = torch.eye(outputs, dtype=dtype, device=device)
        found["output_whitener"] = eye.repeat(groups, 1, 1)
    return found

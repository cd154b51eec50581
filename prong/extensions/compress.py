"""Spectral compression of a trained layer (section 5 of the paper).

Whitened units form "an ordered representation, having least and most significant bits". With Σ = Q
diag(λ) Qᵀ the units z = Qᵀ(h − c) are uncorrelated. Dropping unit i therefore changes the output by
‖W q_i‖² λ_i in mean square, and the changes of several units add up. The units with the smallest
changes are dropped, as many as the tolerance allows. The remaining weight has rank k. It becomes
two thin layers if k(in + out·taps) < in·out·taps, else one layer of the old shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prong.convert import fold, unwrap
from prong.linalg.dtypes import wide_dtype
from prong.linalg.layout import from_grouped
from prong.linalg.projection import to_canonical
from prong.linalg.roots import spectrum
from prong.refresh.collect import Forward, default_forward, first_batches, gather
from prong.refresh.tied_layers import TiedLayers, tied_layers_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Compression:
    """The result of the compression of one layer.

    Attributes:
        name: qualified name of the layer.
        units: whitened units per group before the compression.
        kept: units per group afterwards; the largest number that any group needs.
        error: relative error √(E‖Δy‖²/E‖y − E y‖²) due to the dropped units, computed from the
            layer's spectrum. It is exact for dense layers. For kernels of several taps it assumes
            that pixels are independent.
        split: whether the layer became two thin layers.
        multiply_adds: multiply-adds per output position, before and after.
    """

    name: str
    units: int
    kept: int
    error: float
    split: bool
    multiply_adds: tuple[int, int]


def compress(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    tolerance: float = 0.05,
    samples: int = 2000,
    forward: Forward = default_forward,
) -> tuple[nn.Module, list[Compression]]:
    """Fold a whitened model and drop the whitened units that change its output least.

    Args:
        model: a whitened model; it is not changed.
        batches: data for the statistics that order the units.
        tolerance: largest relative error of each layer's output, at least 0 and below 1.
        samples: N_s, number of examples for the statistics.
        forward: how to run a batch; see `prong.Reparametrizer`.

    Returns:
        A new plain model, and the result for each layer. In the new model a layer that was split is
        an `nn.Sequential` of two layers under the old name.

    Raises:
        ValueError: if `tolerance` is out of range, or the model has no whitened layer.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance!r}: it must be at least 0 and below 1")
    inner = unwrap(model)
    units = tied_layers_of(inner)
    if not units:
        raise ValueError("model: it has no whitened layer; call prong.whiten first")
    layers = [layer for unit in units for layer in unit.layers]
    kept = first_batches(batches, samples, units[0].weight.device)
    saved = [(layer, layer.moments) for layer in layers]
    frozen = [unit.weight for unit in units if not unit.weight.requires_grad]
    try:
        # Statistics are gathered only where the weight is trainable, but frozen layers are
        # compressed too.
        for weight in frozen:
            weight.requires_grad_(True)
        gather(inner, layers, kept, forward)
        plain = fold(inner)
        reports = [_compress_unit(plain, unit, tolerance) for unit in units]
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
        for layer, moments in saved:
            layer.moments = moments
    return plain, reports


@torch.no_grad()
def _compress_unit(plain: nn.Module, unit: TiedLayers, tolerance: float) -> Compression:
    layer = unit.layer
    moments = unit.moments()
    assert moments is not None
    dtype = wide_dtype(layer.weight.device)
    weight, _ = to_canonical(layer.grouped_weight(dtype), None, unit.wide_phi())
    groups, outputs, taps, inputs = weight.shape
    mean = moments.mean if unit.centred else torch.zeros_like(moments.mean)
    values, rows = spectrum(moments.second_moment(mean))
    projected = weight @ rows.unsqueeze(1).transpose(2, 3)
    kept, error = _kept(projected.square().sum((1, 2)) * values, tolerance)
    before, after = outputs * taps * inputs, kept * (inputs + outputs * taps)
    order = (projected.square().sum((1, 2)) * values).argsort(descending=True)[:, :kept]
    basis = torch.gather(rows, 1, order.unsqueeze(-1).expand(-1, -1, inputs))
    thin = weight @ basis.unsqueeze(1).transpose(2, 3)
    low = thin @ basis.unsqueeze(1)
    split = after < before and len(unit.layers) == 1
    shift = ((weight - low).sum(2) @ mean.unsqueeze(-1)).flatten()
    for name, module in list(plain.named_modules()):
        if name not in _names(plain, unit):
            continue
        bias = getattr(module, "bias", None)
        if bias is not None and unit.centred:
            # The bias takes up the mean of the dropped part.
            bias.add_(shift.to(bias.dtype))
        if split:
            _replace(plain, name, _thin_pair(module, basis, thin, layer.TRANSPOSED))
        else:
            target = module.get_parameter("weight")
            target.copy_(from_grouped(low, target.shape, layer.TRANSPOSED))
    cost = (groups * before, groups * (after if split else before))
    return Compression(unit.name, inputs, kept, error, split, cost)


def _kept(contributions: Float[Tensor, "groups in"], tolerance: float) -> tuple[int, float]:
    """Return the number of units that every group keeps, and the relative error."""
    total = contributions.sum()
    if not float(total) > 0:
        return 1, 0.0
    ordered = contributions.sort(1, descending=True).values
    # The change over all groups if each keeps its first k units, for k = 0 … in.
    tail = total - torch.cat([ordered.new_zeros(1), ordered.sum(0).cumsum(0)])
    lost = (tail.clamp(min=0) / total).sqrt()
    kept = max(1, int((lost > tolerance + 1e-12).sum()))
    return min(kept, contributions.shape[1]), float(lost[min(kept, contributions.shape[1])])


def _names(plain: nn.Module, unit: TiedLayers) -> set[str]:
    shared = dict(plain.named_modules())[unit.name]
    weight = shared._parameters.get("weight")
    return {
        name
        for name, module in plain.named_modules()
        if module._parameters.get("weight") is weight and weight is not None
    }


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    if not name:
        raise ValueError(
            "model: it is a single layer, which cannot be split; put it into an nn.Sequential"
        )
    setattr(model.get_submodule(parent), child, module)


def _thin_pair(
    module: nn.Module,
    basis: Float[Tensor, "groups kept in"],
    thin: Float[Tensor, "groups out taps kept"],
    transposed: bool,
) -> nn.Sequential:
    """Return the two layers h → basis · h → thin · (basis · h) + bias."""
    groups, kept, inputs = basis.shape
    weight = module.get_parameter("weight")
    made: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
    has_bias = module._parameters.get("bias") is not None
    first: nn.Module
    second: nn.Module
    if not isinstance(module, nn.modules.conv._ConvNd):
        first = nn.Linear(inputs, kept, bias=False, **made)
        second = nn.Linear(kept, thin.shape[1], bias=has_bias, **made)
        transposed = False  # Whatever the layout was: transformers' Conv1D has `[in, out]`.
    else:
        pointwise = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(module.kernel_size) - 1]
        first = pointwise(groups * inputs, groups * kept, 1, groups=groups, bias=False, **made)
        arguments: dict[str, Any] = {
            "kernel_size": module.kernel_size,
            "stride": module.stride,
            "padding": module.padding,
            "dilation": module.dilation,
            "groups": groups,
            "bias": has_bias,
            "padding_mode": module.padding_mode,
            **made,
        }
        if transposed:
            arguments["output_padding"] = module.output_padding
        second = type(module)(groups * kept, module.out_channels, **arguments)
    narrow = first.get_parameter("weight")
    narrow.copy_(from_grouped(basis.unsqueeze(2), narrow.shape))
    wide = second.get_parameter("weight")
    wide.copy_(from_grouped(thin, wide.shape, transposed))
    if has_bias:
        second.get_parameter("bias").copy_(module.get_parameter("bias"))
    return nn.Sequential(first, second).train(module.training)

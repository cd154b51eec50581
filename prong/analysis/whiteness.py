"""Measures of how white and how well conditioned the layers' inputs are on given data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prong.convert import unwrap
from prong.linalg.conditioning import whitening_error
from prong.linalg.roots import spectrum
from prong.refresh.collect import Forward, default_forward, first_batches, gather
from prong.refresh.tied_layers import tied_layers_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Whiteness:
    """The statistics of one layer's input on given data, without damping.

    Attributes:
        name: qualified name of the layer.
        spectrum: eigenvalues of the covariance of h, `[groups, in]`, largest first, in squared
            units of h.
        white_spectrum: eigenvalues of the second moment of U(h − c), `[groups, in]`, largest first;
            all are 1 if the whitened input is white.
        whitening_error: ‖E[U(h − c)(h − c)ᵀUᵀ] − I‖_F/√in. A direction without variance adds 1 to
            the squared norm, because there is no damping here.
        rank: number of eigenvalues of the covariance above 1e-10 times the largest; the maximum
            over the groups.
    """

    name: str
    spectrum: Float[Tensor, "groups in"]
    white_spectrum: Float[Tensor, "groups in"]
    whitening_error: float
    rank: int


def whiteness(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int = 2000,
    forward: Forward = default_forward,
) -> dict[str, Whiteness]:
    """Compute spectra and whitening errors of every whitened layer, by name.

    Args:
        model: a whitened model; it is not changed.
        batches: data to measure on.
        samples: N_s, examples to use.
        forward: how to run a batch; see `prong.Reparametrizer`.

    Raises:
        ValueError: if the model has no trainable whitened layer, or there is no batch.
    """
    inner = unwrap(model)
    units = [unit for unit in tied_layers_of(inner) if unit.weight.requires_grad]
    if not units:
        raise ValueError("model: it has no whitened layer with a trainable weight")
    layers = [layer for unit in units for layer in unit.layers]
    saved = [layer.moments for layer in layers]
    found = {}
    try:
        gather(inner, layers, first_batches(batches, samples, units[0].weight.device), forward)
        for unit in units:
            moments = unit.moments()
            if moments is None or not float(moments.count) > 0:
                continue
            phi = unit.wide_phi()
            values, _ = spectrum(moments.covariance())
            white = phi.whitener @ moments.second_moment(phi.mean) @ phi.whitener.transpose(1, 2)
            found[unit.name] = Whiteness(
                unit.name,
                values,
                torch.linalg.eigvalsh(white).flip(1),
                float(whitening_error(white)),
                int((values > 1e-10 * values[:, :1]).sum(1).max()),
            )
    finally:
        for layer, moments in zip(layers, saved, strict=True):
            layer.moments = moments
    return found

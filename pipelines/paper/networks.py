"""The networks of the paper's experiments, and the losses that they are trained with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

AUTOENCODER = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
"""Widths of the 8-layer auto-encoder of Hinton and Salakhutdinov (2006), as in Martens (2010)."""
NONLINEARITIES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}


def autoencoder(
    nonlinearity: str, normalised: bool, widths: Sequence[int] = AUTOENCODER
) -> nn.Module:
    """Return an auto-encoder from Xavier's weights; BN comes before the nonlinearity.

    Its code is linear, as in Hinton and Salakhutdinov (2006), and so is its last layer.

    Args:
        nonlinearity: One of `NONLINEARITIES`.
        normalised: Whether it has batch normalisation.
        widths: Of all layers, the input first; the narrowest is the code.
    """
    layers: list[nn.Module] = []
    linear = (widths.index(min(widths)), len(widths) - 1)
    for index, (before, after) in enumerate(itertools.pairwise(widths), start=1):
        layer = nn.Linear(before, after)
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers.append(layer)
        if index not in linear:
            layers += [*[nn.BatchNorm1d(after)] * normalised, NONLINEARITIES[nonlinearity]()]
    return nn.Sequential(*layers)


def tanh_mlp(widths: Sequence[int], normalised: bool) -> nn.Sequential:
    """Return a perceptron with tanh units, from Xavier's weights; the last layer is linear.

    Args:
        widths: Of all layers, the input first.
        normalised: Whether batch normalisation comes before each tanh.
    """
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(widths), start=1):
        layer = nn.Linear(before, after)
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers.append(layer)
        if index < len(widths) - 1:
            layers += [*[nn.BatchNorm1d(after)] * normalised, nn.Tanh()]
    return nn.Sequential(*layers)


def loss(outputs: Tensor, x: Tensor, labels: Tensor | None) -> Tensor:
    """Return the cross-entropy of labels, or the binary one of pixels summed over an image."""
    if labels is not None:
        return F.cross_entropy(outputs, labels)
    if outputs.shape != x.shape:
        return outputs.square().mean()
    return F.binary_cross_entropy_with_logits(outputs, x, reduction="sum") / len(x)

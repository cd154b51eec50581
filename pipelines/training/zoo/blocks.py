"""The parts that several networks of the zoo are made of."""

from __future__ import annotations

from torch import Tensor, nn


def convolution(
    channels: int, width: int, kernel: int = 3, *, stride: int = 1, batch_norm: bool
) -> nn.Sequential:
    """Return a convolution that keeps the size (or divides it by `stride`), BN if asked, ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(width))
    return nn.Sequential(*layers, nn.ReLU())


def dense(units: int, width: int, *, batch_norm: bool) -> list[nn.Module]:
    """Return a dense layer, batch normalisation if asked, and ReLU."""
    layers: list[nn.Module] = [nn.Linear(units, width)]
    if batch_norm:
        layers.append(nn.BatchNorm1d(width))
    return [*layers, nn.ReLU()]


class SpatialMean(nn.Module):
    """The mean over all positions: [batch, channels, height, width] to [batch, channels]."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the means of feature maps."""
        return maps.mean((2, 3))

"""`inception`: BN-Inception (Ioffe and Szegedy, 2015), scaled by `width`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipelines.training.signature import NetworkSignature
from pipelines.training.zoo.blocks import SpatialMean, convolution

_PAPER = 128
"""The `width` with which the channels are those of the paper."""
_LARGE = 64
"""Edge in pixels from which on the paper's stem, which divides it by 8, comes first."""
# Figure 5 of the paper: 1×1; 3×3 reduce, 3×3; double 3×3 reduce, double 3×3; pooling, projection.
# Modules with stride 2 have no 1×1, and pass what is pooled on as it is.
_MODULES: tuple[tuple[int, int, int, int, int, str, int], ...] = (
    (64, 64, 64, 64, 96, "avg", 32),
    (64, 64, 96, 64, 96, "avg", 64),
    (0, 128, 160, 64, 96, "max", 0),
    (224, 64, 96, 96, 128, "avg", 128),
    (192, 96, 128, 96, 128, "avg", 128),
    (160, 128, 160, 128, 160, "avg", 96),
    (96, 128, 192, 160, 192, "avg", 96),
    (0, 128, 192, 192, 256, "max", 0),
    (352, 192, 320, 160, 224, "avg", 128),
    (352, 192, 320, 192, 224, "max", 128),
)


class InceptionModule(nn.Module):
    """Branches side by side, whose feature maps are joined.

    Attributes:
        width: Feature maps of all branches together.
    """

    def __init__(
        self, channels: int, widths: tuple[int, int, int, int, int, str, int], *, batch_norm: bool
    ) -> None:
        super().__init__()
        one, reduce, three, double_reduce, double, pooling, projection = widths
        stride = 1 if one else 2

        def layer(maps: int, width: int, kernel: int, step: int = 1) -> nn.Sequential:
            return convolution(maps, width, kernel, stride=step, batch_norm=batch_norm)

        pool: nn.Module = nn.MaxPool2d(3, stride, padding=1)
        if pooling == "avg":
            pool = nn.AvgPool2d(3, stride, padding=1)
        branches = [layer(channels, one, 1)] if one else []
        branches += [
            nn.Sequential(layer(channels, reduce, 1), layer(reduce, three, 3, stride)),
            nn.Sequential(
                layer(channels, double_reduce, 1),
                layer(double_reduce, double, 3),
                layer(double, double, 3, stride),
            ),
            nn.Sequential(pool, *([layer(channels, projection, 1)] if projection else [])),
        ]
        self.branches = nn.ModuleList(branches)
        self.width = one + three + double + (projection or channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the joined feature maps [batch, width, height / stride, …]."""
        return torch.cat([branch(maps) for branch in self.branches], 1)


def inception(asked: NetworkSignature) -> nn.Module:
    """Return a stem, the paper's ten modules, the mean over positions, and logits.

    With `width` 128 the modules have the channels of the paper, with 32 a quarter of them. Images
    below 64 pixels go through one 3×3 convolution instead of the stem.
    """
    norm = asked.batch_norm

    def scaled(channels: int) -> int:
        return max(1, round(channels * asked.width / _PAPER)) if channels else 0

    maps = scaled(192)
    if asked.size < _LARGE:
        layers: list[nn.Module] = [convolution(asked.channels, maps, batch_norm=norm)]
    else:
        layers = [
            convolution(asked.channels, scaled(64), 7, stride=2, batch_norm=norm),
            nn.MaxPool2d(3, 2, padding=1),
            convolution(scaled(64), scaled(64), 1, batch_norm=norm),
            convolution(scaled(64), maps, batch_norm=norm),
            nn.MaxPool2d(3, 2, padding=1),
        ]
    for one, reduce, three, double_reduce, double, pooling, projection in _MODULES:
        channels = [scaled(n) for n in (one, reduce, three, double_reduce, double)]
        widths = (*channels, pooling, scaled(projection))
        module = InceptionModule(maps, widths, batch_norm=norm)  # type: ignore[arg-type]
        layers.append(module)
        maps = module.width
    return nn.Sequential(*layers, SpatialMean(), nn.Linear(maps, asked.outputs))

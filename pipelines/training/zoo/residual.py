"""`resnet`: the small residual network for images of CIFAR's size (He et al., 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipelines.training.signature import NetworkSignature
from pipelines.training.zoo.blocks import SpatialMean, convolution

_STAGES, _BLOCKS = 3, 2


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut; the shortcut is 1×1 where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.first = convolution(channels, width, stride=stride, batch_norm=batch_norm)
        self.second = convolution(width, width, batch_norm=batch_norm)[:-1]  # no ReLU yet
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.shortcut = convolution(channels, width, 1, stride=stride, batch_norm=batch_norm)[
                :-1
            ]
        if not batch_norm:
            # Otherwise the sums grow from block to block, with nothing that normalises them.
            with torch.no_grad():
                for parameter in self.second.parameters():
                    parameter.div_((_STAGES * _BLOCKS) ** 0.5)

    def forward(self, maps: Tensor) -> Tensor:
        """Return feature maps [batch, width, height / stride, …]."""
        total: Tensor = self.second(self.first(maps)) + self.shortcut(maps)
        return total.relu()


def resnet(asked: NetworkSignature) -> nn.Module:
    """Return a convolution, three stages of two blocks, the mean over positions, and logits.

    The stages have `width`, 2 `width` and 4 `width` feature maps; the second and third halve the
    size. With `width` 16 and more blocks it is the paper's network for CIFAR-10.
    """
    norm, maps = asked.batch_norm, asked.width
    layers: list[nn.Module] = [convolution(asked.channels, maps, batch_norm=norm)]
    for stage in range(_STAGES):
        width = asked.width * 2**stage
        for block in range(_BLOCKS):
            stride = 2 if stage and not block else 1
            layers.append(BasicBlock(maps, width, stride, batch_norm=norm))
            maps = width
    return nn.Sequential(*layers, SpatialMean(), nn.Linear(maps, asked.outputs))

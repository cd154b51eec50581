"""Networks without branches: `cnn`, `mlp`, `autoencoder` and `vgg`."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pipelines.training.signature import NetworkSignature
from pipelines.training.zoo.blocks import convolution, dense


class Cnn(nn.Module):
    """Blocks of a 3×3 convolution and 2×2 max pooling, then a dense layer and logits.

    There are blocks until at most 4×4 pixels are left. The dense layer's input
    covariance is then cheap to decompose. Every second block doubles the feature maps.
    """

    def __init__(self, asked: NetworkSignature) -> None:
        super().__init__()
        features: list[nn.Module] = []
        maps, size, block = asked.channels, asked.size, 0
        while size > 4 or block == 0:
            width = asked.width * 2 ** ((block + 1) // 2)
            features.append(nn.Conv2d(maps, width, 3, padding=1))
            if asked.batch_norm:
                features.append(nn.BatchNorm2d(width))
            features.append(nn.ReLU())
            if size > 1:
                features.append(nn.MaxPool2d(2))
                size //= 2
            maps, block = width, block + 1
        self.features = nn.Sequential(*features)
        head = dense(maps * size * size, asked.hidden, batch_norm=asked.batch_norm)
        self.head = nn.Sequential(nn.Flatten(), *head, nn.Linear(asked.hidden, asked.outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [batch, classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def cnn(asked: NetworkSignature) -> nn.Module:
    """Return the small convolutional classifier."""
    return Cnn(asked)


def mlp(asked: NetworkSignature) -> nn.Module:
    """Return two hidden layers of `hidden` units."""
    return nn.Sequential(
        nn.Flatten(),
        *dense(math.prod(asked.input_shape), asked.hidden, batch_norm=asked.batch_norm),
        *dense(asked.hidden, asked.hidden, batch_norm=asked.batch_norm),
        nn.Linear(asked.hidden, asked.outputs),
    )


def autoencoder(asked: NetworkSignature) -> nn.Module:
    """Return the deep auto-encoder of the paper: pixels-1000-500-250-30 and back.

    The sizes are scaled by `hidden`/128, so that 128, the default, gives the paper's. The code and
    the output are linear.
    """
    scale = asked.hidden / 128
    code = max(1, round(30 * scale))
    sizes = [max(1, round(units * scale)) for units in (1000, 500, 250)]
    pixels = math.prod(asked.input_shape)
    layers: list[nn.Module] = [nn.Flatten()]
    before = pixels
    for units in sizes:
        layers += dense(before, units, batch_norm=asked.batch_norm)
        before = units
    layers.append(nn.Linear(before, code))
    before = code
    for units in reversed(sizes):
        layers += dense(before, units, batch_norm=asked.batch_norm)
        before = units
    return nn.Sequential(
        *layers, nn.Linear(before, pixels), nn.Unflatten(1, tuple(asked.output_shape))
    )


def vgg(asked: NetworkSignature) -> nn.Module:
    """Return blocks of two 3×3 convolutions and pooling, as long as 2×2 pixels are left or more.

    The first block has `width` feature maps, each further one twice as many, up to 8 times.
    """
    layers: list[nn.Module] = []
    maps, size, width = asked.channels, asked.size, asked.width
    for _ in range(5):
        if size < 4:
            break
        layers += convolution(maps, width, batch_norm=asked.batch_norm)
        layers += convolution(width, width, batch_norm=asked.batch_norm)
        layers.append(nn.MaxPool2d(2))
        maps, size, width = width, size // 2, min(2 * width, 8 * asked.width)
    # Of large images as much is left as the dense layer can take: its input covariance is
    # decomposed as a whole.
    if size > 4:
        layers.append(nn.AvgPool2d(size // 4))
        size //= size // 4
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        *dense(maps * size * size, asked.hidden, batch_norm=asked.batch_norm),
        nn.Linear(asked.hidden, asked.outputs),
    )

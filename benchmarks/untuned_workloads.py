"""What `benchmarks.untuned` trains: networks of several kinds, with their data and updates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.paper.networks import NONLINEARITIES, autoencoder


@dataclass(frozen=True)
class Workload:
    """A network, its data and how long it trains.

    Attributes:
        data: A key of `untuned_data.READERS`.
        build: Makes the network; the caller seeds torch.
        batch: Images of an update.
        updates: Of a whole training.
        normalised: Whether the network has batch normalisation.
        twin: The workload whose network is this one with batch normalisation; empty: none.
        rates: Which grids of rates its methods get: by whether the loss is a mean or a sum over
            pixels.
        peers: Methods beyond the first-order ones.
        seconds: Of a training by SGD on one core, roughly; only to say how long there is to go.
        costly: Such peers too, but only on demand: they would take the whole table over two hours.
    """

    data: str
    build: Callable[[], nn.Module]
    batch: int
    updates: int
    normalised: bool = False
    twin: str = ""
    rates: str = "mean"
    peers: tuple[str, ...] = ()
    costly: tuple[str, ...] = ()
    seconds: float = 10.0

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method that can run on it, those in the table first."""
        first_order = ("sgd", *["bn+sgd"] * bool(self.twin), "rmsprop", "adamw")
        return ("prong", *first_order, *self.peers, *self.costly)


def _convolve(before: int, after: int, norm: Callable[[int], nn.Module] | None) -> list[nn.Module]:
    middle = [] if norm is None else [norm(after)]
    return [nn.Conv2d(before, after, 3, padding=1), *middle, nn.ReLU()]


def cnn(normalised: bool) -> nn.Module:
    """Return three convolutions and two dense layers, for 28 × 28 digits."""
    norm = nn.BatchNorm2d if normalised else None
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((1, 16, 32, 64)):
        layers += [*_convolve(before, after, norm), nn.MaxPool2d(2)]
    dense = [nn.Linear(576, 64), *[nn.BatchNorm1d(64)] * normalised, nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


def vgg(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Return six convolutions with a norm each and a dense layer, for 32 × 32 photographs."""
    layers: list[nn.Module] = []
    before = 3
    for after in (32, 64, 128):
        layers += [*_convolve(before, after, norm), *_convolve(after, after, norm)]
        layers.append(nn.MaxPool2d(2))
        before = after
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


class Residual(nn.Module):
    """Two normalised convolutions beside a shortcut, which is 1 × 1 where the shape changes."""

    def __init__(
        self, before: int, after: int, stride: int, norm: Callable[[int], nn.Module]
    ) -> None:
        """Build the block; `stride` is the first convolution's."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            norm(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            norm(after),
        )
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride)

    def forward(self, input: Tensor) -> Tensor:
        """Add the shortcut."""
        return F.relu(self.body(input) + self.shortcut(input))


def resnet(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Return a convolution, three residual blocks and a dense layer."""
    return nn.Sequential(
        *_convolve(3, 16, norm),
        Residual(16, 16, 1, norm),
        Residual(16, 32, 2, norm),
        Residual(32, 64, 2, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Attention(nn.Module):
    """Self-attention with a dense layer each for queries, keys, values and the output."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the four layers."""
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, input: Tensor) -> Tensor:
        """Let every token attend to all."""
        split = (
            layer(input).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        """Build both."""
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.think = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, input: Tensor) -> Tensor:
        """Add both to their shortcuts."""
        input = input + self.attend(input)
        return input + self.think(input)


class VisionTransformer(nn.Module):
    """A transformer over the 64 patches of a 32 × 32 photograph; the mean token is classified."""

    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        """Build `depth` blocks."""
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.places = nn.Parameter(torch.randn(1, 64, width) / math.sqrt(width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, input: Tensor) -> Tensor:
        """Return the classes' logits."""
        tokens = self.patches(input).flatten(2).transpose(1, 2) + self.places
        return self.head(self.blocks(tokens).mean(1))


def perceptron() -> nn.Module:
    """Return a small ReLU network for 8 × 8 digits."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def _groups(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


MATRIX = ("muon", "newton-muon", "soap", "shampoo", "muon-on-v")
_autoencoder = partial(Workload, "pixels", batch=128, updates=400, seconds=12)
_cnn = partial(Workload, "mnist", batch=64, updates=400, seconds=14)
_cifar = partial(Workload, "cifar10", batch=64, updates=300, seconds=30)

WORKLOADS = {
    **{
        f"ae-{name}{'-bn' * normalised}": _autoencoder(
            partial(autoencoder, name, normalised),
            normalised=normalised,
            rates=f"sum{', normalised' * normalised}",
            twin="" if normalised else f"ae-{name}-bn",
            peers=MATRIX[:-1] if (name, normalised) == ("sigmoid", True) else (),
            costly=MATRIX[-1:] if (name, normalised) == ("sigmoid", True) else MATRIX,
        )
        for name in NONLINEARITIES
        for normalised in (False, True)
    },
    "cnn": _cnn(partial(cnn, False), twin="cnn-bn"),
    "cnn-bn": _cnn(partial(cnn, True), normalised=True, peers=MATRIX),
    "vgg-bn": _cifar(partial(vgg, nn.BatchNorm2d), normalised=True, seconds=72),
    "vgg-gn": _cifar(partial(vgg, _groups), seconds=72),
    "resnet-bn": _cifar(partial(resnet, nn.BatchNorm2d), normalised=True),
    "resnet-gn": _cifar(partial(resnet, _groups)),
    "vit": _cifar(VisionTransformer, peers=MATRIX),
    "mlp": Workload("digits", perceptron, batch=64, updates=400, seconds=1),
}

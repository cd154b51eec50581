"""The network that is trained, saved and folded: a small convolutional classifier.

It takes raw images (uint8, or the same values in any float type) and normalises them itself, so
the exported network needs no preprocessing except the decoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prong
from pipelines.core.config import Method
from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path, read_json, write_json

_SPEC, _WEIGHTS = "network.json", "network.safetensors"


@dataclass(frozen=True)
class NetworkSpec:
    """The settings that define a network's architecture and input.

    Attributes:
        method: Determines batch normalisation (`bn`, `prong+`) and whitening (`prong`, `prong+`).
        size: Edge of the square input, pixels.
        channels: 1 (grey) or 3 (RGB).
        classes: Class names; the position is the label.
        mean: Per channel, of pixel values in [0, 1].
        deviation: Per channel, of pixel values in [0, 1].
        width: Feature maps of the first block; each further block doubles them.
        hidden: Units of the dense layer.
    """

    method: Method
    size: int
    channels: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    width: int
    hidden: int

    @property
    def normalised(self) -> bool:
        """Whether batch normalisation follows each hidden layer."""
        return self.method in ("bn", "prong+")

    @property
    def whitened(self) -> bool:
        """Whether the layers are trained in whitened coordinates."""
        return self.method in ("prong", "prong+")


class Network(nn.Module):
    """Blocks of a 3×3 convolution and 2×2 max pooling, then a dense layer and logits.

    There are blocks until at most 4×4 pixels are left. The dense layer's input
    covariance is then cheap to decompose. Every second block doubles the feature maps. This is the
    plain form with (W, b); `prong.whiten` makes the whitened form of it.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(spec.deviation).view(1, -1, 1, 1))
        features: list[nn.Module] = []
        maps, size, block = spec.channels, spec.size, 0
        while size > 4 or block == 0:
            width = spec.width * 2 ** ((block + 1) // 2)
            features.append(nn.Conv2d(maps, width, 3, padding=1))
            if spec.normalised:
                features.append(nn.BatchNorm2d(width))
            features.append(nn.ReLU())
            if size > 1:
                features.append(nn.MaxPool2d(2))
                size //= 2
            maps, block = width, block + 1
        self.features = nn.Sequential(*features)
        head: list[nn.Module] = [nn.Flatten(), nn.Linear(maps * size * size, spec.hidden)]
        if spec.normalised:
            head.append(nn.BatchNorm1d(spec.hidden))
        head += [nn.ReLU(), nn.Linear(spec.hidden, len(spec.classes))]
        self.head = nn.Sequential(*head)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [batch, classes] of raw images [batch, channels, size, size] in 0…255."""
        pixels = images.to(self.mean.dtype) / 255
        logits: Tensor = self.head(self.features((pixels - self.mean) / self.deviation))
        return logits


def build(spec: NetworkSpec) -> nn.Module:
    """Return a newly initialised network, whitened if the method whitens."""
    network: nn.Module = Network(spec)
    return prong.whiten(network) if spec.whitened else network


def save(directory: Path, spec: NetworkSpec, state: Mapping[str, Tensor]) -> None:
    """Write `network.json` and `network.safetensors` into `directory`, each atomically."""
    write_json(directory / _SPEC, asdict(spec))
    with atomic_path(directory / _WEIGHTS) as temporary:
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, temporary)


def load_spec(directory: Path) -> NetworkSpec:
    """Read `network.json`.

    Raises:
        UserError: If it is absent or not a network's specification.
    """
    path = directory / _SPEC
    try:
        value: dict[str, Any] = read_json(path)
        lists = {k: tuple(value[k]) for k in ("classes", "mean", "deviation")}
        return NetworkSpec(**{**value, **lists})
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a trained network: {error}") from None


def load(directory: Path) -> tuple[NetworkSpec, nn.Module]:
    """Return the specification and the trained network in evaluation mode.

    Raises:
        UserError: If a file is absent, damaged, or does not fit the specification.
    """
    spec = load_spec(directory)
    network = build(spec)
    try:
        network.load_state_dict(load_file(directory / _WEIGHTS), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{directory / _WEIGHTS}: cannot be loaded: {error}") from None
    return spec, network.eval()

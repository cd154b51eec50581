"""What the benchmarks run on: networks, and batches of real images or of random ones.

Real images come from a folder with the files of MNIST or CIFAR-10. A network can be trained on them
first: how much a layer costs depends on how many directions its trained inputs fill.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import prong
from pipelines.core import params_file
from pipelines.core.paths import Layout
from pipelines.data import sources
from pipelines.paper.networks import AUTOENCODER, loss

MODELS = ("autoencoder", "vgg", "inception", "mlp4096", "tiny")
WIDTHS = {"autoencoder": AUTOENCODER, "mlp4096": (4096,) * 4, "tiny": (12, 16, 8)}


def mlp(widths: Sequence[int], normalised: bool) -> nn.Sequential:
    """Return sigmoid layers of these widths; the last one is linear."""
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if index < len(widths) - 2:
            layers += [nn.BatchNorm1d(after)] * normalised + [nn.Sigmoid()]
    return nn.Sequential(*layers)


def vgg(normalised: bool) -> nn.Sequential:
    """Return a VGG for 32 × 32 images: 8 convolutions of 64 to 512 channels, one dense layer."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 2), (512, 2)):
        for _ in range(depth):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] * normalised + [nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 4, 10))


class Inception(nn.Module):
    """One block of an Inception network: four branches of a 192-channel map, side by side."""

    def __init__(self, normalised: bool) -> None:
        """Build the branches 1×1, 3×3, double 3×3 and pooling."""
        super().__init__()

        def convolve(before: int, after: int, size: int) -> list[nn.Module]:
            layers: list[nn.Module] = [nn.Conv2d(before, after, size, padding=size // 2)]
            return layers + [nn.BatchNorm2d(after)] * normalised + [nn.ReLU()]

        self.branches = nn.ModuleList(
            nn.Sequential(*layers)
            for layers in (
                convolve(192, 64, 1),
                convolve(192, 64, 1) + convolve(64, 64, 3),
                convolve(192, 64, 1) + convolve(64, 96, 3) + convolve(96, 96, 3),
                [nn.AvgPool2d(3, 1, 1), *convolve(192, 32, 1)],
            )
        )

    def forward(self, input: Tensor) -> Tensor:
        """Join the branches' channels."""
        return torch.cat([branch(input) for branch in self.branches], 1)


def network(model: str, normalised: bool) -> nn.Module:
    """Return one of `MODELS`, with batch normalisation or without."""
    if model in WIDTHS:
        return mlp(WIDTHS[model], normalised)
    return vgg(normalised) if model == "vgg" else Inception(normalised)


@dataclass
class Workload:
    """Examples to draw batches from.

    Attributes:
        examples: Inputs, one a row; on the device that they are used on.
        targets: Labels, or None where a network is to give back its input (or zeros).
        batch: Examples in a batch.
        test: Held-out examples.
    """

    examples: Tensor
    targets: Tensor | None
    batch: int
    test: Tensor

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return a batch drawn with replacement."""
        chosen = torch.randint(len(self.examples), (self.batch,), generator=generator)
        chosen = chosen.to(self.examples.device)
        return self.examples[chosen], None if self.targets is None else self.targets[chosen]


def real(model: str, folder: Path, batch: int) -> Workload:
    """Return MNIST for networks of dense layers and CIFAR-10 for the others."""
    source = "mnist" if model in WIDTHS else "cifar10"
    found = sources.read(
        replace(params_file.load(Layout.find().params).data, source=source, mirror=str(folder)),
        root=Path.cwd(),
        downloads=Path.cwd(),
    )
    assert found.official is not None
    images = torch.from_numpy(found.images).float() / 255
    held_out = torch.from_numpy(found.official)
    if source == "mnist":
        flat = images.flatten(1)
        return Workload(flat[~held_out], None, batch, flat[held_out])
    images = images.permute(0, 3, 1, 2).contiguous() if images.shape[-1] == 3 else images
    labels = torch.from_numpy(found.labels).long()
    return Workload(images[~held_out], labels[~held_out], batch, images[held_out])


def random(model: str, batch: int) -> Workload:
    """Return positive inputs with a mean and with correlations."""
    if model in WIDTHS:
        width = WIDTHS[model][0]
        latent = torch.randn(4096, 20) @ torch.randn(20, width) / 4
        examples = torch.sigmoid(latent + torch.randn(4096, width) / 10)
    else:
        shape = (3, 32, 32) if model == "vgg" else (192, 28, 28)
        examples = torch.sigmoid(torch.randn(2 * batch, *shape))
    return Workload(examples, None, batch, examples[:batch])


def trained(model: str, normalised: bool, work: Workload, updates: int) -> dict[str, Tensor]:
    """Return the weights after so many updates by PRONG, as those of the plain network."""
    torch.manual_seed(0)
    plain = network(model, normalised)
    for layer in plain.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    net = prong.whiten(plain.to(work.examples.device))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    natural = prong.Reparametrizer(net, optimizer)
    if model != "inception":
        natural.initialize([work.examples[:2000]])
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        x, labels = work.draw(generator)
        loss(net(x), x, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        natural.step()
        optimizer.zero_grad()
    natural.detach()
    return prong.fold(net).state_dict()

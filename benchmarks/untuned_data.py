"""The images that `benchmarks.untuned` trains on: MNIST, CIFAR-10 and scikit-learn's digits.

The auto-encoders give back MNIST's images, with pixels in [0, 1]. All other networks tell classes
apart, from inputs with mean 0 and variance 1 over the training images (of each colour). Images are
taken in one fixed random order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data import download, sources
from pipelines.data import image_folder as folder

MEASURED = 2000
"""Training images, and test images, that losses and errors are measured on."""


@dataclass(frozen=True)
class Examples:
    """Images to train on and to test on; the labels are None where the image is the target."""

    images: Tensor
    labels: Tensor | None
    test: Tensor
    test_labels: Tensor | None

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor | None]:
        """Return a batch drawn with replacement."""
        chosen = torch.randint(len(self.images), (batch,), generator=generator)
        return self.images[chosen], None if self.labels is None else self.labels[chosen]

    def first(self, count: int, batch: int) -> list[Tensor]:
        """Return the first training images in batches."""
        return list(self.images[:count].split(batch))


def pixels(where: Path) -> Examples:
    """Return all of MNIST as vectors of pixels in [0, 1]."""
    images, _, test, _ = _mnist(where)
    return Examples(_flat(images[_order(images)]), None, _flat(test[_order(test)][:MEASURED]), None)


def mnist(where: Path) -> Examples:
    """Return 4,000 of MNIST's digits."""
    return _classified(*_mnist(where), train=4000, test=MEASURED)


def cifar10(where: Path) -> Examples:
    """Return 4,000 photographs of CIFAR-10.

    The folder holds `train.tar.gz` and `test.tar.gz`, tars of images in folders by class, or else
    the archive of the binary version.
    """
    place = where / "cifar10"
    parts = [place / "train.tar.gz", place / "test.tar.gz"]
    if all(part.is_file() for part in parts):
        train, test = (
            folder.read(part, where=str(part), sha256="", size=32, channels=3) for part in parts
        )
        return _classified(
            train.images, train.labels, test.images, test.labels, train=4000, test=MEASURED
        )
    archive = download.fetch(
        sources.CIFAR10, mirror=str(place.resolve()), root=place, downloads=place
    )
    found = sources.cifar10(archive, 32, sha256=sources.CIFAR10.sha256)
    return _classified(*_halves(found), train=4000, test=MEASURED)


def digits(where: Path) -> Examples:
    """Return scikit-learn's digits, 1,297 to train on and 500 to test on; no folder is read."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32)[:, np.newaxis]
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order]
    found = _classified(images[:1297], labels[:1297], images[1297:], labels[1297:], 1297, 500)
    return Examples(found.images.flatten(1), found.labels, found.test.flatten(1), found.test_labels)


READERS: dict[str, Callable[[Path], Examples]] = {
    "pixels": pixels,
    "mnist": mnist,
    "cifar10": cifar10,
    "digits": digits,
}
FOLDERS = {"pixels": "mnist", "mnist": "mnist", "cifar10": "cifar10"}
"""The folder that each kind of data is read from."""

_Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]


def _mnist(where: Path) -> _Arrays:
    place = where / "mnist"
    return _halves(sources.mnist(28, mirror=str(place.resolve()), root=place, downloads=place))


def _halves(found: sources.Collection) -> _Arrays:
    assert found.official is not None
    train, test = ~found.official, found.official
    return found.images[train], found.labels[train], found.images[test], found.labels[test]


def _order(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(len(images))


def _flat(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).float().flatten(1) / 255


def _classified(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    test_images: NDArray[np.uint8],
    test_labels: NDArray[np.int64],
    train: int,
    test: int,
) -> Examples:
    """Take the first images of each part in random order, and standardise each colour."""
    chosen, held_out = _order(images)[:train], _order(test_images)[:test]
    parts = [torch.from_numpy(images[chosen]).float(), torch.from_numpy(test_images[held_out])]
    axes = [axis for axis in range(parts[0].dim()) if axis != 1]
    mean, deviation = parts[0].mean(axes, keepdim=True), parts[0].std(axes, keepdim=True)
    standard = [(part.float() - mean) / deviation for part in parts]
    if standard[0].dim() == 4:  # convolutions take a quarter less time for it
        standard = [part.contiguous(memory_format=torch.channels_last) for part in standard]
    return Examples(
        standard[0],
        torch.from_numpy(labels[chosen]).long(),
        standard[1],
        torch.from_numpy(test_labels[held_out]).long(),
    )

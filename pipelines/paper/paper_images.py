"""The images of the experiments: read once by the stage `data`, in one fixed random order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.core.files import atomic_path, read_json, sha256_json, write_json
from pipelines.data import sources
from pipelines.data.collection import Collection
from pipelines.paper import cifar_images

_TEST = 1000
"""Of the 5,000 digits that the package carries: those that are not trained on."""
_PIXELS, _CARD = "images.safetensors", "card.json"


@dataclass(frozen=True)
class SplitImages:
    """Images to train on and to test on.

    Attributes:
        train: Pixels in [0, 1], float32 [n, channels, edge, edge].
        labels: Their classes, int64 [n].
        test: Like `train`.
        test_labels: Like `labels`.
    """

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class ImagePlace:
    """Where images come from.

    Attributes:
        root: Relative paths begin here.
        downloads: Folder of verified downloads.
        mirror: `data.mirror` of the checkout.
    """

    root: Path
    downloads: Path
    mirror: str


def _digits(size: int, place: ImagePlace) -> Collection:
    return sources.digits(size)


def _mnist(size: int, place: ImagePlace) -> Collection:
    return sources.mnist(size, mirror=place.mirror, root=place.root, downloads=place.downloads)


def _cifar10(size: int, place: ImagePlace) -> Collection:
    return cifar_images.read(size, mirror=place.mirror, root=place.root, downloads=place.downloads)


READERS: dict[str, Callable[[int, ImagePlace], Collection]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
}
"""`digits`: the 5,000 of MNIST that come with the package; `mnist`: all 70,000; `cifar10`: all
60,000."""


def prepare(source: str, size: int, place: ImagePlace, folder: Path, limit: int = 0) -> None:
    """Write the images of a source, as they are trained on, and a card of them.

    Args:
        source: Key of `READERS`.
        size: Edge of the images, pixels.
        place: Where they come from.
        folder: Is made, or filled again.
        limit: Training images, and test images, at most; 0: all.

    Raises:
        UserError: If the source is absent or corrupt.
        Unavailable: If no host answers.
    """
    found = READERS[source](size, place)
    order = np.random.default_rng(0).permutation(len(found.images))
    held_out = found.official if found.official is not None else _last(len(order), order)
    parts: dict[str, Tensor] = {}
    for name, chosen in (("train", ~held_out), ("test", held_out)):
        rows = order[chosen[order]][: limit or None]
        parts[f"{name}.images"] = torch.from_numpy(np.ascontiguousarray(found.images[rows]))
        parts[f"{name}.labels"] = torch.from_numpy(found.labels[rows])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / _PIXELS) as temporary:
        save_file(parts, temporary)
    card = {
        "source": ", ".join((source, *found.notes)),
        "size": size,
        "train": len(parts["train.labels"]),
        "test": len(parts["test.labels"]),
        "files": dict(found.files),
        "content": sha256_json(list(found.hashes)),
    }
    write_json(folder / _CARD, card)


def _last(count: int, order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the test set of a source that has none: the last of its fixed random order."""
    held_out = np.zeros(count, dtype=bool)
    held_out[order[-_TEST:]] = True
    return held_out


def load(folder: Path, dtype: torch.dtype = torch.float32) -> SplitImages:
    """Return what `prepare` wrote.

    Args:
        folder: That of `prepare`.
        dtype: Of the pixels.
    """
    found = load_file(folder / _PIXELS)
    train, test = (found[f"{part}.images"].to(dtype) / 255 for part in ("train", "test"))
    return SplitImages(train, found["train.labels"], test, found["test.labels"])


def card_of(folder: Path) -> Mapping[str, Any]:
    """Return the card that `prepare` wrote."""
    card: Mapping[str, Any] = read_json(folder / _CARD)
    return card

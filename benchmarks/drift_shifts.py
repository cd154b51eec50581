"""Real shifts of images, by strength, and images of other data sets."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Images = NDArray[np.uint8]
Change = Callable[[Images, np.random.Generator], Images]


def _bytes(values: NDArray[Any]) -> Images:
    found: Images = np.rint(values).clip(0, 255).astype(np.uint8)
    return found


def _rotation(angle: float) -> Change:
    def change(images: Images, random: np.random.Generator) -> Images:
        turned = ndimage.rotate(images.astype(float), angle, (3, 2), reshape=False, order=1)
        return _bytes(turned)

    return change


def _blur(width: float) -> Change:
    def change(images: Images, random: np.random.Generator) -> Images:
        return _bytes(ndimage.gaussian_filter(images.astype(float), (0, 0, width, width)))

    return change


def _noise(deviation: float) -> Change:
    def change(images: Images, random: np.random.Generator) -> Images:
        return _bytes(images + random.normal(0, deviation, images.shape))

    return change


def _thickness(edge: int, grow: bool) -> Change:
    def change(images: Images, random: np.random.Generator) -> Images:
        by = ndimage.grey_dilation if grow else ndimage.grey_erosion
        found: Images = by(images, (1, 1, edge, edge))
        return found

    return change


NEAR: dict[str, Change] = {
    **{f"rotation {angle}°": _rotation(angle) for angle in (10, 20, 30, 45, 60, 90)},
    **{f"blur σ {width} px": _blur(width) for width in (0.5, 1.0, 1.5, 2.0)},
    **{f"noise σ {deviation}": _noise(deviation) for deviation in (10, 25, 50, 75)},
    **{f"thicker {edge}×{edge}": _thickness(edge, True) for edge in (2, 3)},
    **{f"thinner {edge}×{edge}": _thickness(edge, False) for edge in (2, 3)},
}
"""Shift and strength; noise in grey levels of 255."""


def uniform_noise(like: Images, random: np.random.Generator) -> Images:
    """Return pixels that are all independent, each value as likely."""
    return random.integers(0, 256, like.shape, dtype=np.uint8)


def normal_noise(like: Images, random: np.random.Generator) -> Images:
    """Return independent pixels around grey, standard deviation 50."""
    return _bytes(random.normal(128, 50, like.shape))


def cifar10(archive: Path, count: int, size: int, channels: int) -> Images:
    """Return images of CIFAR-10's archive of class folders, spread over it, resized."""
    found = []
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".jpg")]
        for at in np.linspace(0, len(members) - 1, count).astype(int):
            file = tar.extractfile(members[at])
            assert file is not None
            image = Image.open(io.BytesIO(file.read())).convert("L" if channels == 1 else "RGB")
            found.append(np.asarray(image.resize((size, size))).reshape(size, size, channels))
    return np.stack(found).transpose(0, 3, 1, 2).copy()


def mnist(archive: Path, count: int, size: int, channels: int) -> Images:
    """Return the first images of an IDX file, with a border around them, in so many channels."""
    with gzip.open(archive) as file:
        images = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16)
    images = images.reshape(-1, 1, 28, 28)
    before = (size - 28) // 2
    border = (before, size - 28 - before)
    return np.repeat(np.pad(images, ((0, 0), (0, 0), border, border)), channels, axis=1)

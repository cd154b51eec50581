"""The output of `prepare` in `data/prepared`, and how later stages read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from pipelines.core.errors import UserError

SPLITS = ("train", "validation", "gate", "test")
CARD, PICTURE, SAMPLE = "card.json", "examples.png", "sample.png"


@dataclass(frozen=True)
class Card:
    """A description of the data.

    Attributes:
        source: `data.source`.
        size: Edge of the square images, pixels.
        channels: 1 (grey) or 3 (RGB).
        classes: Class names; the position is the label.
        mean: Per channel, of pixel values in [0, 1], over the train split.
        deviation: Standard deviation, in the same way; at least one grey level (1/255).
        data_hash: sha256 over size, classes and, split by split, content, labels and pixels.
        counts: Images per split and class.
        seed: The seed that decided the splits, together with the images.
        shares: `validation`, `gate` and `test` of the parameters.
        official_test: Whether the test split is the source's own test set.
        limit: Largest number of images to use; 0: all.
        duplicates: Exact copies left out; one copy of each image is kept.
        conflicts: Names of images left out because equal pixels have different labels.
        constant: Images of one colour, still in the splits.
        ignored: Number of files that are hidden or not images.
        warnings: Points to know before training.
        files: The source's files → their sha256; a folder has one over all its images.
        picture: File name of the example picture.
        official_validation: Whether the validation split is the source's own validation set.
        leaks: Images left out because an official set has equal pixels.
    """

    source: str
    size: int
    channels: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    data_hash: str
    counts: Mapping[str, Mapping[str, int]]
    seed: int
    shares: Mapping[str, float]
    official_test: bool
    limit: int
    duplicates: int
    conflicts: tuple[str, ...]
    constant: int
    ignored: int
    warnings: tuple[str, ...]
    files: Mapping[str, str]
    picture: str = PICTURE
    official_validation: bool = False
    leaks: int = 0

    def total(self, split: str | None = None) -> int:
        """Return the number of images in one split, or in all."""
        return sum(sum(self.counts[name].values()) for name in ([split] if split else SPLITS))


@dataclass(frozen=True)
class Split:
    """The images of one split, in the order of their content hash.

    Attributes:
        images: Values 0 to 255, [n, channels, size, size].
        labels: Positions in the card's classes, [n].
        hashes: Hex sha256 of each image's content, n of them.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    hashes: tuple[str, ...]


def load_card(directory: Path) -> Card:
    """Read the data card.

    Raises:
        UserError: If it is absent or not a data card.
    """
    path = directory / CARD
    try:
        card = TypeAdapter(Card).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: absent; the stage prepare makes it") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: not a data card: {key}: {first['msg']}") from None
    sound = (
        len(card.classes) >= 2
        and set(card.counts) == set(SPLITS)
        and all(set(counts) == set(card.classes) for counts in card.counts.values())
        and len(card.mean) == len(card.deviation) == card.channels
        and all(math.isfinite(value) for value in card.mean)
        and all(math.isfinite(value) and value > 0 for value in card.deviation)
    )
    if not sound:
        raise UserError(f"{path}: not a data card: classes, counts, mean and deviation disagree")
    return card


def save_split(directory: Path, name: str, split: Split) -> None:
    """Write one split as `NAME.safetensors`: images, labels, and hashes as uint8 [n, 32]."""
    tensors: dict[str, NDArray[Any]] = {
        "images": np.ascontiguousarray(split.images),
        "labels": split.labels,
        "hashes": np.frombuffer(bytes.fromhex("".join(split.hashes)), np.uint8).reshape(-1, 32),
    }
    # Python writes the file, not safetensors, so that a full disk raises an OSError.
    (directory / f"{name}.safetensors").write_bytes(save(tensors))


def check_split(where: str, split: Split, *, size: int, channels: int, classes: int) -> None:
    """Check one split's types, shapes and ranges.

    Args:
        where: Its name in an error message.
        split: Images of any number, also none.
        size: Edge of the images, pixels.
        channels: 1 or 3.
        classes: Number of classes; labels are 0 … classes − 1.

    Raises:
        UserError: Naming the first condition that does not hold.
    """
    images, labels, n = split.images, split.labels, len(split.hashes)
    if images.dtype != np.uint8:
        raise UserError(f"{where}: images must be uint8 (0 to 255), not {images.dtype}")
    if images.shape != (n, channels, size, size):
        raise UserError(
            f"{where}: images must be {[n, channels, size, size]}, not {list(images.shape)}"
        )
    if labels.dtype != np.int64 or labels.shape != (n,):
        raise UserError(
            f"{where}: labels must be int64 [{n}], not {labels.dtype} {list(labels.shape)}"
        )
    if n and not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise UserError(f"{where}: label {wrong} is not a class; allowed: 0 to {classes - 1}")
    if list(split.hashes) != sorted(split.hashes):
        raise UserError(f"{where}: images must be in the order of their content hash")


def load_split(directory: Path, name: str) -> Split:
    """Read one split and check it against the data card.

    Args:
        directory: Output of `prepare`.
        name: One of `SPLITS`.

    Raises:
        UserError: If the split is unknown or absent, or does not match the data card.
    """
    if name not in SPLITS:
        raise UserError(f"split {name!r}: unknown; allowed: {', '.join(SPLITS)}")
    card = load_card(directory)
    path = directory / f"{name}.safetensors"
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: absent; the stage prepare makes it") from None
    except SafetensorError as error:
        raise UserError(f"{path}: corrupt or truncated: {error}") from None
    if set(tensors) != {"images", "labels", "hashes"}:
        raise UserError(f"{path}: contains {sorted(tensors)}, not images, labels and hashes")
    hashes = tensors["hashes"]
    if hashes.dtype != np.uint8 or hashes.ndim != 2 or hashes.shape[1] != 32:
        raise UserError(f"{path}: hashes must be uint8 [n, 32], not {hashes.dtype} {hashes.shape}")
    text = hashes.tobytes().hex()
    names = tuple(text[at : at + 64] for at in range(0, len(text), 64))
    split = Split(tensors["images"], tensors["labels"], names)
    check_split(str(path), split, size=card.size, channels=card.channels, classes=len(card.classes))
    counts = np.bincount(split.labels, minlength=len(card.classes))
    if counts.tolist() != [card.counts[name][label] for label in card.classes]:
        raise UserError(f"{path}: the images per class are not those of {CARD}")
    return split

"""The data card: a summary of the data in numbers, text and a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipelines.data.prepared import SPLITS, Card, Split

_ROWS, _COLUMNS, _CELL, _GAP, _LABEL = 20, 10, 56, 4, 150


def statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, of pixel values in [0, 1].

    Both come from exact histograms, so they do not depend on the order of summation. The
    deviation is at least 1/255, one grey level, so that dividing by it is safe.

    Args:
        images: [n, channels, height, width], n ≥ 1.
    """
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(images), 1024):  # bincount widens its input to int64
            part = images[start : start + 1024, channel]
            counts += np.bincount(part.ravel(), minlength=256)
        weights = counts / counts.sum()
        mean = float(weights @ levels)
        means.append(mean)
        deviations.append(max(float(np.sqrt(weights @ (levels - mean) ** 2)), 1 / 255))
    return tuple(means), tuple(deviations)


def data_hash(splits: Mapping[str, Split], size: int, classes: Sequence[str]) -> str:
    """Return one sha256 over everything in the data that training and scoring use."""
    digest = hashlib.sha256(json.dumps([size, list(classes)]).encode())
    for name in SPLITS:
        split = splits[name]
        digest.update(f"\n{name} {len(split.hashes)}\n".encode())
        digest.update("".join(split.hashes).encode())
        digest.update(split.labels.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(split.images).data)
    return digest.hexdigest()


def counts(splits: Mapping[str, Split], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return split → class → number of images, zeros included."""
    table = {}
    for name in SPLITS:
        numbers = np.bincount(splits[name].labels, minlength=len(classes)).tolist()
        table[name] = dict(zip(classes, numbers, strict=True))
    return table


def constant(splits: Mapping[str, Split]) -> int:
    """Return how many images are of one colour."""
    total = 0
    for split in splits.values():
        flat = split.images.reshape(*split.images.shape[:2], -1)
        total += int((flat.max(axis=2) == flat.min(axis=2)).all(axis=1).sum())
    return total


def image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return an array [channels, size, size] as a picture with exactly these pixels."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def picture(split: Split, classes: Sequence[str]) -> Image.Image:
    """Draw some images of each class, one row per class; a few evenly spaced ones of many classes.

    Args:
        split: The images to choose from.
        classes: Their names.
    """
    present = np.unique(split.labels)
    step = max(1, -(-len(present) // _ROWS))
    chosen = present[::step]
    font = ImageFont.load_default(size=14)
    pitch = _CELL + _GAP
    sheet = Image.new("RGB", (_LABEL + _COLUMNS * pitch, len(chosen) * pitch + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(chosen):
        top = _GAP + row * pitch
        name = classes[label]
        short = name if len(name) <= 18 else name[:17] + "…"
        draw.text((_GAP, top + _CELL // 2 - 9), short, fill="black", font=font)
        for column, at in enumerate(np.flatnonzero(split.labels == label)[:_COLUMNS]):
            shown = image(split.images[at])
            larger = shown.width < _CELL
            resample = Image.Resampling.NEAREST if larger else Image.Resampling.BICUBIC
            cell = shown.convert("RGB").resize((_CELL, _CELL), resample)
            sheet.paste(cell, (_LABEL + column * pitch, top))
    return sheet


def describe(card: Card) -> str:
    """Return the card as a few lines of text."""
    colour = "grey" if card.channels == 1 else "RGB"
    parts = ", ".join(f"{name} {card.total(name)}" for name in SPLITS)
    own = [
        name
        for name, official in (
            ("validation", card.official_validation),
            ("test", card.official_test),
        )
        if official
    ]
    verb = "set is" if len(own) == 1 else "sets are"
    decided = f"the {' and '.join(own)} {verb} the source's own" if own else f"seed {card.seed}"
    lines = [
        f"{card.source}: {card.total()} images of {len(card.classes)} classes, "
        f"{card.size} × {card.size} {colour}",
        f"splits: {parts} ({decided})",
        f"mean {_numbers(card.mean)}, deviation {_numbers(card.deviation)}",
        f"data hash {card.data_hash[:12]}",
    ]
    if card.duplicates:
        lines.append(f"exact duplicates left out: {card.duplicates}")
    if card.ignored:
        lines.append(f"files that are hidden or not images: {card.ignored}")
    lines += [f"warning: {warning}" for warning in card.warnings]
    return "\n".join(lines)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)

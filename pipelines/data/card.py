"""The data card: a summary of the data in numbers, text and a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.data.fonts import font
from pipelines.data.prepared import SPLITS, Card, Split
from pipelines.tasks.form import CLASSIFICATION, Form

_ROWS, _COLUMNS, _CELL, _GAP, _LABEL = 20, 10, 56, 4, 150


def statistics(images: NDArray[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, of pixel values in [0, 1].

    Both come from exact histograms, so they do not depend on the order of summation. The
    deviation is at least 1/255, one grey level, so that dividing by it is safe.

    Args:
        images: uint8 or uint16 [n, channels, height, width], n ≥ 1.
    """
    count = 256 if images.dtype == np.uint8 else 65536
    levels = np.arange(count) / (count - 1)
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(count, dtype=np.int64)
        for start in range(0, len(images), 1024):  # bincount widens its input to int64
            part = images[start : start + 1024, channel]
            counts += np.bincount(part.ravel(), minlength=count)
        weights = counts / counts.sum()
        mean = float(weights @ levels)
        means.append(mean)
        deviations.append(max(float(np.sqrt(weights @ (levels - mean) ** 2)), 1 / 255))
    return tuple(means), tuple(deviations)


def data_hash(splits: Mapping[str, Split], form: Form) -> str:
    """Return one sha256 over everything in the data that training and scoring use."""
    facts: list[object] = [form.size, list(form.classes)]
    if form.task != CLASSIFICATION or form.kind != "images" or form.bits != 8:
        facts.append(asdict(form))
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name in SPLITS:
        split = splits[name]
        digest.update(f"\n{name} {len(split.hashes)}\n".encode())
        digest.update("".join(split.hashes).encode())
        kind = "<i8" if split.targets.dtype.kind == "i" else "<f8"
        digest.update(split.targets.astype(kind).tobytes())
        digest.update(np.ascontiguousarray(split.inputs).data)
    return digest.hexdigest()


def constant(splits: Mapping[str, Split]) -> int:
    """Return how many images are of one colour; of rows none."""
    total = 0
    for split in splits.values():
        if split.inputs.ndim != 4:
            continue
        flat = split.inputs.reshape(*split.inputs.shape[:2], -1)
        total += int((flat.max(axis=2) == flat.min(axis=2)).all(axis=1).sum())
    return total


def image(pixels: NDArray[Any]) -> Image.Image:
    """Return an array [channels, size, size] as a picture with these pixels.

    Of 16-bit values the upper eight bits are shown. Of two channels the first is, as grey, and of
    more than three the first three.
    """
    shown = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return Image.fromarray(shown[0] if len(shown) < 3 else shown[:3].transpose(1, 2, 0))


def picture(split: Split, classes: Sequence[str]) -> Image.Image:
    """Draw some images of each class, one row per class; a few evenly spaced ones of many classes.

    Args:
        split: The images to choose from.
        classes: Their names; without any, there is one row.
    """
    labels = split.targets if classes else np.zeros(len(split.inputs), np.int64)
    present = np.unique(labels)
    step = max(1, -(-len(present) // _ROWS))
    chosen = present[::step]
    letters = font(14)
    pitch = _CELL + _GAP
    sheet = Image.new("RGB", (_LABEL + _COLUMNS * pitch, len(chosen) * pitch + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(chosen):
        top = _GAP + row * pitch
        name = classes[label] if classes else "examples"
        short = name if len(name) <= 18 else name[:17] + "…"
        draw.text((_GAP, top + _CELL // 2 - 9), short, fill="black", font=letters)
        for column, at in enumerate(np.flatnonzero(labels == label)[:_COLUMNS]):
            shown = image(split.inputs[at])
            larger = shown.width < _CELL
            resample = Image.Resampling.NEAREST if larger else Image.Resampling.BICUBIC
            cell = shown.convert("RGB").resize((_CELL, _CELL), resample)
            sheet.paste(cell, (_LABEL + column * pitch, top))
    return sheet


def describe(card: Card) -> str:
    """Return the card as a few lines of text."""
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
        f"{card.source}: {card.total()} {_told(card.form)}",
        f"splits: {parts} ({decided})",
        *_statistics(card.form),
        f"data hash {card.data_hash[:12]}",
    ]
    if card.duplicates:
        lines.append(f"exact duplicates left out: {card.duplicates}")
    if card.ignored:
        lines.append(f"files that are hidden or not images: {card.ignored}")
    lines += [f"warning: {warning}" for warning in card.warnings]
    return "\n".join(lines)


def _told(form: Form) -> str:
    """Return what the examples are: `images of 10 classes, 28 × 28 grey`."""
    of = f"of {len(form.classes)} classes" if form.classes else f"with {form.answers_told()}"
    if form.kind == "rows":
        numbers, categories = len(form.numbers), len(form.categories)
        return f"rows {of}, {numbers} columns of numbers and {categories} of categories"
    named = {1: "grey", 3: "RGB"}
    colour = named.get(form.channels, f"with {form.channels} channels")
    deep = "" if form.bits == 8 else f", {form.bits} bits"
    return f"images {of}, {form.size} × {form.size} {colour}{deep}"


def _statistics(form: Form) -> list[str]:
    if form.kind == "rows":
        return []
    return [f"mean {_numbers(form.mean)}, deviation {_numbers(form.deviation)}"]


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)

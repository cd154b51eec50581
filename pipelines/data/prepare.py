"""The stage `prepare`: read the source, split it, check it, write it with its data card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.core.config import DataConfig
from pipelines.core.files import atomic_directory, write_json
from pipelines.data import card as cards
from pipelines.data import schema, sources
from pipelines.data.collection import Collection
from pipelines.data.prepared import CARD, PICTURE, SAMPLE, SPLITS, Card, Split, save_split
from pipelines.data.splits import Selection, Shares, assign, select


def prepare(config: DataConfig, *, root: Path, downloads: Path, out: Path) -> Card:
    """Write `out`: a safetensors file for each split, `card.json`, `examples.png`, `sample.png`.

    Equal images and parameters give equal bytes; names and order of the files do not matter.

    Args:
        config: `data` of `params.yaml`.
        root: The directory that relative paths start from.
        downloads: Folder for downloaded files.
        out: Replaced atomically after all checks.

    Returns:
        The data card.

    Raises:
        UserError: If the source, its layout, an image, or the prepared data is invalid.
        Unavailable: If a host does not answer.
    """
    collection = sources.read(config, root=root, downloads=downloads)
    official, validation = collection.official, collection.validation
    selection = select(
        collection.hashes,
        collection.labels.tolist(),
        [False] * len(collection.hashes) if official is None else official.tolist(),
        config.limit,
        None if validation is None else validation.tolist(),
    )
    rows = _rows(config, collection, selection.kept)
    splits = {name: _take(collection, rows[name]) for name in SPLITS}
    card = _card(config, collection, selection, splits)
    with atomic_directory(out) as directory:
        for name in SPLITS:
            save_split(directory, name, splits[name])
        cards.picture(splits["train"], card.classes).save(directory / PICTURE)
        cards.image(splits["test"].images[0]).save(directory / SAMPLE)
        write_json(directory / CARD, card_values(card))
    return card


def card_values(card: Card) -> dict[str, object]:
    """Return a card as plain values for JSON."""
    return {name: getattr(card, name) for name in Card.__dataclass_fields__}


def _rows(
    config: DataConfig, collection: Collection, kept: NDArray[np.int64]
) -> dict[str, list[int]]:
    """Return the rows of each split, by content hash, equal ones by label."""
    shares = Shares(config.validation, config.gate, config.test)
    official, validation, hashes = collection.official, collection.validation, collection.hashes
    rows: dict[str, list[int]] = {name: [] for name in SPLITS}
    for row in sorted(kept.tolist(), key=lambda row: (hashes[row], collection.labels[row])):
        own = None if official is None else bool(official[row])
        held = None if validation is None else bool(validation[row])
        split = assign(config.seed, hashes[row], shares, official=own, validation=held)
        rows[split].append(row)
    return rows


def _take(collection: Collection, rows: list[int]) -> Split:
    index = np.array(rows, dtype=np.int64)
    hashes = tuple(collection.hashes[row] for row in rows)
    return Split(collection.images[index], collection.labels[index], hashes)


def _card(
    config: DataConfig, collection: Collection, selection: Selection, splits: dict[str, Split]
) -> Card:
    classes = collection.classes
    channels, size = collection.images.shape[1:3]
    warnings = list(schema.check(splits, size=size, channels=channels, classes=classes))
    conflicts = tuple(sorted(collection.names[row] for row in selection.conflicts))
    if conflicts:
        shown = schema.listed(conflicts, "image", "images")
        warnings.append(f"{shown} left out: equal pixels with different labels")
    if selection.leaks:
        leaks = sorted(collection.names[row] for row in selection.leaks)
        shown = schema.listed(leaks, "image", "images")
        warnings.append(f"{shown} left out: equal pixels in the official test or validation set")
    warnings += collection.notes
    constant = cards.constant(splits)
    if constant:
        warnings.append(f"{constant} {'image is' if constant == 1 else 'images are'} of one colour")
    mean, deviation = cards.statistics(splits["train"].images)
    return Card(
        source=config.source,
        size=size,
        channels=channels,
        classes=classes,
        mean=mean,
        deviation=deviation,
        data_hash=cards.data_hash(splits, size, classes),
        counts=cards.counts(splits, classes),
        seed=config.seed,
        shares={"validation": config.validation, "gate": config.gate, "test": config.test},
        official_test=collection.official is not None,
        limit=config.limit,
        duplicates=selection.duplicates,
        conflicts=conflicts,
        constant=constant,
        ignored=len(collection.ignored),
        warnings=tuple(warnings),
        files=dict(collection.files),
        official_validation=collection.validation is not None,
        leaks=len(selection.leaks),
    )

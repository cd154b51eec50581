"""The stage `prepare`: read the source, split it, check it, write it with its data card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.core.files import atomic_directory, write_json
from pipelines.data import card as cards
from pipelines.data import schema, sources, table, table_card
from pipelines.data.collection import Collection
from pipelines.data.large_arrays import gathered
from pipelines.data.prepared import (
    CARD,
    PICTURE,
    ROW,
    SAMPLE,
    SPLITS,
    Card,
    Split,
    counted,
    save_split,
)
from pipelines.data.splits import Selection, Shares, assign, select
from pipelines.tasks.form import CLASSIFICATION, RECONSTRUCTION, REGRESSION, Form, Value
from pipelines.tasks.named import task_of


def prepare(
    config: DataConfig, *, task: str = "auto", root: Path, downloads: Path, out: Path
) -> Card:
    """Write `out`: a safetensors file for each split, `card.json`, `examples.png` and a sample.

    Equal examples and parameters give equal bytes; names and order of the files do not matter. The
    sample is one example of the test split: `sample.png`, `sample.npy` of images that no PNG holds
    (16 bits, or neither 1 nor 3 channels), or `sample.csv` of a table.

    Args:
        config: `data` of `params.yaml`.
        task: `task.name` of `params.yaml`.
        root: The directory that relative paths start from.
        downloads: Folder for downloaded files.
        out: Replaced atomically after all checks.

    Returns:
        The data card.

    Raises:
        UserError: If the source, its layout, an example, or the prepared data is invalid.
        Unavailable: If a host does not answer.
    """
    if config.source == "table":
        return _table(config, task, root, out)
    collection = sources.read(config, root=root, downloads=downloads, task=task)
    name = _suggested(collection) if task == "auto" else task
    official, validation = collection.official, collection.validation
    selection = select(
        collection.hashes,
        _answers(collection).tolist(),
        [False] * len(collection.hashes) if official is None else official.tolist(),
        config.limit,
        None if validation is None else validation.tolist(),
    )
    rows = _rows(config, collection, selection.kept)
    splits = {part: _take(collection, rows[part]) for part in SPLITS}
    form = _form(collection, splits["train"], name)
    task_of(form, root)  # the data must suit it
    card = _card(config, form, collection, selection, splits)
    with atomic_directory(out) as directory:
        for part in SPLITS:
            save_split(directory, part, splits[part])
        cards.picture(splits["train"], card.classes).save(directory / PICTURE)
        _save_sample(directory, splits["test"].inputs[0])
        write_json(directory / CARD, card_values(card))
    return card


def _table(config: DataConfig, task: str, root: Path, out: Path) -> Card:
    made = table.load(config, task, root)
    form = made.form
    warnings = (*schema.check(made.splits, form), *made.notes)
    task_of(form, root)  # the data must suit it
    card = Card(
        source=config.source,
        form=form,
        data_hash=cards.data_hash(made.splits, form),
        counts={name: counted(made.splits[name], form) for name in SPLITS},
        seed=config.seed,
        shares={"validation": config.validation, "gate": config.gate, "test": config.test},
        official_test="test" in made.official,
        limit=config.limit,
        duplicates=0,
        conflicts=(),
        constant=0,
        ignored=made.ignored,
        warnings=warnings,
        files={Path(config.path).name: made.content},
        official_validation="validation" in made.official,
        leaks=made.leaks,
    )
    with atomic_directory(out) as directory:
        for part in SPLITS:
            save_split(directory, part, made.splits[part])
        table_card.picture(made.splits["train"], form).save(directory / PICTURE)
        sample = table_card.sample(made.splits["test"], form)
        (directory / ROW).write_text(sample, encoding="utf-8")
        write_json(directory / CARD, card_values(card))
    return card


def _save_sample(directory: Path, pixels: NDArray[Any]) -> None:
    """Write one image [channels, size, size] as a file that is decoded to the same."""
    if pixels.dtype == np.uint8 and len(pixels) in (1, 3):
        cards.image(pixels).save(directory / SAMPLE)
    else:
        array = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        np.save((directory / SAMPLE).with_suffix(".npy"), array, allow_pickle=False)


def card_values(card: Card) -> dict[str, object]:
    """Return a card as plain values for JSON."""
    return asdict(card)


def _rows(
    config: DataConfig, collection: Collection, kept: NDArray[np.int64]
) -> dict[str, list[int]]:
    """Return the rows of each split, by content hash, equal ones by label."""
    shares = Shares(config.validation, config.gate, config.test)
    official, validation, hashes = collection.official, collection.validation, collection.hashes
    rows: dict[str, list[int]] = {name: [] for name in SPLITS}
    answers = _answers(collection)
    for row in sorted(kept.tolist(), key=lambda row: (hashes[row], answers[row])):
        own = None if official is None else bool(official[row])
        held = None if validation is None else bool(validation[row])
        split = assign(config.seed, hashes[row], shares, official=own, validation=held)
        rows[split].append(row)
    return rows


def _suggested(collection: Collection) -> str:
    """Return the task that targets of this kind are for."""
    if collection.values is not None:
        return REGRESSION
    return CLASSIFICATION if collection.classes else RECONSTRUCTION


def _answers(collection: Collection) -> NDArray[np.int64]:
    """Return a number for each row that tells different targets apart."""
    if collection.values is None:
        return collection.labels
    _, numbers = np.unique(collection.values, axis=0, return_inverse=True)
    return numbers.reshape(-1)


def _take(collection: Collection, rows: list[int]) -> Split:
    index = np.array(rows, dtype=np.int64)
    hashes = tuple(collection.hashes[row] for row in rows)
    targets: NDArray[Any] = np.empty((len(rows), 0))  # nothing is to be predicted
    if collection.classes:
        targets = collection.labels[index]
    elif collection.values is not None:
        targets = collection.values[index]
    return Split(gathered(collection.images, index), targets, hashes)


def _values(names: Sequence[str], targets: NDArray[np.float64]) -> tuple[Value, ...]:
    """Return the numbers to predict, with exact sums, so that no order or machine matters.

    Raises:
        UserError: If one is the same in all examples.
    """
    found = []
    for name, column in zip(names, targets.T.tolist(), strict=True):
        mean = math.fsum(column) / len(column)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in column) / len(column))
        if not deviation > 0:
            raise UserError(
                f"data: {name} is {column[0]:g} in every example of the split train; nothing can "
                "be learnt of it"
            )
        found.append(Value(name, mean, deviation))
    return tuple(found)


def _form(collection: Collection, train: Split, task: str) -> Form:
    """Return the inputs and answers of images, with the statistics of the split train."""
    channels, size = collection.images.shape[1:3]
    form = Form(
        task=task,
        classes=collection.classes,
        size=size,
        channels=channels,
        mean=(0.0,) * channels,
        deviation=(1.0,) * channels,
        bits=8 * collection.images.dtype.itemsize,
    )
    if not len(train.inputs):  # the check of all splits says so
        return form
    values = _values(collection.value_names, train.targets) if collection.value_names else ()
    mean, deviation = cards.statistics(train.inputs)
    return replace(form, mean=mean, deviation=deviation, values=values)


def _card(
    config: DataConfig,
    form: Form,
    collection: Collection,
    selection: Selection,
    splits: dict[str, Split],
) -> Card:
    warnings = list(schema.check(splits, form))
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
    return Card(
        source=config.source,
        form=form,
        data_hash=cards.data_hash(splits, form),
        counts={name: counted(splits[name], form) for name in SPLITS},
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

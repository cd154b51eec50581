"""The output of `prepare` in `data/prepared`, and how later stages read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from pipelines.core.errors import UserError
from pipelines.data import split_file
from pipelines.tasks.form import Form

SPLITS = ("train", "validation", "gate", "test")
CARD, PICTURE, SAMPLE = "card.json", "examples.png", "sample.png"
ROW = "sample.csv"
"""The sample of a table."""
EXAMPLES = "examples"
"""What all examples are counted under, where there are no classes."""
_TENSORS = frozenset({"inputs", "targets", "hashes"})


@dataclass(frozen=True)
class Card:
    """A description of the data.

    Attributes:
        source: `data.source`.
        form: Inputs and answers. Means and deviations are those of the train split; a deviation of
            pixels is at least one grey level (1/255).
        data_hash: sha256 over size, classes and, split by split, content, targets and inputs.
        counts: Examples per split and class; without classes, one number named `examples`.
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
    form: Form
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

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the label."""
        return self.form.classes

    def total(self, split: str | None = None) -> int:
        """Return the number of examples in one split, or in all."""
        return sum(sum(self.counts[name].values()) for name in ([split] if split else SPLITS))


@dataclass(frozen=True)
class Split:
    """The examples of one split, in the order of their content hash.

    Attributes:
        inputs: Images [n, channels, size, size], or rows [n, columns]; see `Form.dtype`. Many of
            them are mapped from their file and cannot be written to.
        targets: Positions in the card's classes, int64 [n]; or values, float64 [n, values].
        hashes: Hex sha256 of each example's content, n of them.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
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
    names = set(card.classes) or {EXAMPLES}
    wrong = card.form.problems()
    if set(card.counts) != set(SPLITS) or any(set(c) != names for c in card.counts.values()):
        wrong.append("classes and counts disagree")
    if wrong:
        raise UserError(f"{path}: not a data card: {'; '.join(wrong)}")
    return card


def save_split(directory: Path, name: str, split: Split) -> None:
    """Write one split as `NAME.safetensors`: inputs, targets, and hashes as uint8 [n, 32]."""
    hashes = np.frombuffer(bytes.fromhex("".join(split.hashes)), np.uint8).reshape(-1, 32)
    tensors = {"inputs": split.inputs, "targets": split.targets, "hashes": hashes}
    split_file.write(directory / f"{name}.safetensors", tensors)


def check_split(where: str, split: Split, form: Form) -> None:
    """Check one split's types, shapes and ranges.

    Args:
        where: Its name in an error message.
        split: Examples of any number, also none.
        form: What the card says of inputs and answers.

    Raises:
        UserError: Naming the first condition that does not hold.
    """
    n = len(split.hashes)
    for name, array, dtype, shape in (
        ("inputs", split.inputs, form.dtype, (n, *form.input_shape)),
        ("targets", split.targets, form.target_dtype, (n, *form.target_shape)),
    ):
        if array.dtype != dtype or array.shape != shape:
            raise UserError(
                f"{where}: {name} must be {dtype} {list(shape)}, "
                f"not {array.dtype} {list(array.shape)}"
            )
    labels, classes = split.targets, len(form.classes)
    if form.classes and n and not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise UserError(f"{where}: label {wrong} is not a class; allowed: 0 to {classes - 1}")
    if not form.classes and not np.isfinite(split.targets).all():
        raise UserError(f"{where}: every value to predict must be a finite number")
    if list(split.hashes) != sorted(split.hashes):
        raise UserError(f"{where}: examples must be in the order of their content hash")


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
        tensors = split_file.read(path, _TENSORS, large="inputs")
    except FileNotFoundError:
        raise UserError(f"{path}: absent; the stage prepare makes it") from None
    hashes = tensors["hashes"]
    if hashes.dtype != np.uint8 or hashes.ndim != 2 or hashes.shape[1] != 32:
        raise UserError(f"{path}: hashes must be uint8 [n, 32], not {hashes.dtype} {hashes.shape}")
    text = hashes.tobytes().hex()
    names = tuple(text[at : at + 64] for at in range(0, len(text), 64))
    split = Split(tensors["inputs"], tensors["targets"], names)
    check_split(str(path), split, card.form)
    if counted(split, card.form) != dict(card.counts[name]):
        raise UserError(f"{path}: the examples per class are not those of {CARD}")
    return split


def counted(split: Split, form: Form) -> dict[str, int]:
    """Return class → number of examples, zeros included; without classes, of all together."""
    if not form.classes:
        return {EXAMPLES: len(split.hashes)}
    numbers = np.bincount(split.targets, minlength=len(form.classes)).tolist()
    return dict(zip(form.classes, numbers, strict=True))

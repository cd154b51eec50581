"""Checks of the prepared data before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.core.errors import UserError
from pipelines.data.prepared import SPLITS, Split, check_split


def check(
    splits: Mapping[str, Split], *, size: int, channels: int, classes: Sequence[str]
) -> tuple[str, ...]:
    """Check all splits together.

    Args:
        splits: One for each of `SPLITS`.
        size: Edge of the images, pixels.
        channels: 1 or 3.
        classes: Their names, in the order of the labels.

    Returns:
        Warnings, which do not stop the run.

    Raises:
        UserError: If a split is missing, empty, or malformed, if there are fewer than two classes
            to train on, or if one image is in two splits.
    """
    if set(splits) != set(SPLITS):
        raise UserError(f"data: splits must be {', '.join(SPLITS)}, not {', '.join(splits)}")
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise UserError(f"data: at least two different classes are needed, found {list(classes)}")
    total = sum(len(split.hashes) for split in splits.values())
    seen: dict[str, str] = {}
    for name in SPLITS:
        split = splits[name]
        check_split(
            f"data: split {name}", split, size=size, channels=channels, classes=len(classes)
        )
        if not split.hashes:
            raise UserError(
                f"data: the split {name} is empty ({total} images in all); "
                f"add images, or raise data.limit or the splits' shares"
            )
        for key in dict.fromkeys(split.hashes):
            if key in seen:
                raise UserError(f"data: image {key} is in both {seen[key]} and {name}")
            seen[key] = name
    present = np.bincount(splits["train"].labels, minlength=len(classes)) > 0
    if present.sum() < 2:
        only = classes[int(np.argmax(present))]
        raise UserError(f"data: the split train holds images of one class only ({only})")
    warnings = []
    absent = [label for label, there in zip(classes, present, strict=True) if not there]
    if absent:
        warnings.append(f"{listed(absent, 'class', 'classes')} without an image in train")
    everything = np.concatenate([split.labels for split in splits.values()])
    counts = np.bincount(everything, minlength=len(classes))
    single = [label for label, count in zip(classes, counts, strict=True) if count == 1]
    if single:
        warnings.append(f"{listed(single, 'class', 'classes')} with one image only")
    twins = _twins(classes)
    if twins:
        warnings.append(f"{listed(twins, 'class', 'classes')} with names that differ in case only")
    return tuple(warnings)


def _twins(classes: Sequence[str]) -> list[str]:
    """Return the names that another one equals but for upper and lower case."""
    counts = Counter(name.casefold() for name in classes)
    return sorted(name for name in classes if counts[name.casefold()] > 1)


def listed(names: Sequence[str], one: str, many: str, most: int = 5) -> str:
    """Return a count and the first names: `7 classes (a, b, c, d, e, …)`."""
    shown = ", ".join(names[:most]) + (", …" if len(names) > most else "")
    return f"{len(names)} {one if len(names) == 1 else many} ({shown})"

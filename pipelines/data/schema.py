"""Checks of the prepared data before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.core.errors import UserError
from pipelines.data.prepared import SPLITS, Split, check_split
from pipelines.tasks.form import CLASSIFICATION, Form


def check(splits: Mapping[str, Split], form: Form) -> tuple[str, ...]:
    """Check all splits together.

    Args:
        splits: One for each of `SPLITS`.
        form: Inputs and answers.

    Returns:
        Warnings, which do not stop the run.

    Raises:
        UserError: If a split is missing, empty, or malformed, if there are fewer than two classes
            to train on, or if one example is in two splits.
    """
    if set(splits) != set(SPLITS):
        raise UserError(f"data: splits must be {', '.join(SPLITS)}, not {', '.join(splits)}")
    named, classify = form.classes, form.task == CLASSIFICATION
    if len(set(named)) != len(named) or (classify and len(named) < 2):
        raise UserError(f"data: at least two different classes are needed, found {list(named)}")
    total = sum(len(split.hashes) for split in splits.values())
    seen: dict[str, str] = {}
    for name in SPLITS:
        split = splits[name]
        check_split(f"data: split {name}", split, form)
        if not split.hashes:
            raise UserError(
                f"data: the split {name} is empty ({total} examples in all); "
                f"add examples, or raise data.limit or the splits' shares"
            )
        for key in dict.fromkeys(split.hashes):
            if key in seen:
                raise UserError(f"data: example {key} is in both {seen[key]} and {name}")
            seen[key] = name
    return _classes(splits, form) if form.classes else ()


def _classes(splits: Mapping[str, Split], form: Form) -> tuple[str, ...]:
    """Check the classes, and return warnings."""
    classes = form.classes
    present = np.bincount(splits["train"].targets, minlength=len(classes)) > 0
    if form.task == CLASSIFICATION and present.sum() < 2:
        only = classes[int(np.argmax(present))]
        raise UserError(f"data: the split train holds examples of one class only ({only})")
    warnings = []
    absent = [label for label, there in zip(classes, present, strict=True) if not there]
    if absent:
        warnings.append(f"{listed(absent, 'class', 'classes')} without an example in train")
    everything = np.concatenate([split.targets for split in splits.values()])
    counts = np.bincount(everything, minlength=len(classes))
    single = [label for label, count in zip(classes, counts, strict=True) if count == 1]
    if single:
        warnings.append(f"{listed(single, 'class', 'classes')} with one example only")
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

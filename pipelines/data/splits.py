"""The split of an image: a function of its content and the seed only.

An image's content hash and `data.seed` give a number u, uniform in [0, 1). The unit interval is
divided, from 0 upwards, into test, gate, validation and train. So no image moves when others are
added, removed or renamed, exact duplicates are in the same split, and a changed share only moves
images near a boundary.

Where the source has an official test set, its images are the test split and `data.test` is not
used. `data.gate` and `data.validation` are then shares of the other images: u < gate is gate,
u < gate + validation is validation, the rest is train. In the same way, the images of an official
validation set are the validation split, and `data.validation` is not used. An image outside an
official set with an exact duplicate in it counts as that duplicate; the test set goes before the
validation set. (So an image can leave training, when it joins an official set, but it can never
enter training.)
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shares:
    """The share of each split, as parts of 1; the rest is train."""

    validation: float
    gate: float
    test: float


@dataclass(frozen=True)
class Selection:
    """Which rows of a source are used, and why the others are not.

    Attributes:
        kept: Row numbers, ascending.
        duplicates: How many rows repeat a kept one with the same label.
        conflicts: Rows left out because equal pixels have different labels.
        leaks: Rows left out, among the two above, because an official set has equal pixels.
    """

    kept: NDArray[np.int64]
    duplicates: int
    conflicts: tuple[int, ...]
    leaks: tuple[int, ...] = ()


def position(seed: int, content: str) -> float:
    """Return u in [0, 1) for an image.

    Args:
        seed: `data.seed`.
        content: Hex sha256 of the image's content.
    """
    digest = hashlib.sha256(f"{seed}:{content}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: exact, so never 1.0


def assign(
    seed: int,
    content: str,
    shares: Shares,
    *,
    official: bool | None = None,
    validation: bool | None = None,
) -> str:
    """Return the split of one image.

    Args:
        seed: `data.seed`.
        content: Hex sha256 of the image's content.
        shares: Parts of 1.
        official: Whether the image, or an exact duplicate, is in the source's official test set;
            None if the source has none.
        validation: The same for the source's official validation set.
    """
    if official:
        return "test"
    if validation:
        return "validation"
    u = position(seed, content)
    test = shares.test if official is None else 0.0
    if u < test:
        return "test"
    if u < test + shares.gate:
        return "gate"
    if validation is None and u < test + shares.gate + shares.validation:
        return "validation"
    return "train"


def select(
    hashes: Sequence[str],
    labels: Sequence[int],
    official: Sequence[bool],
    limit: int,
    validation: Sequence[bool] | None = None,
) -> Selection:
    """Choose the rows to use.

    Of exact duplicates with the same label, one is kept. Images with equal pixels and different
    labels are all left out. An official test set is kept unchanged, and duplicates of its images
    outside it are left out; then the same holds for an official validation set. If there is a
    limit, the images with the smallest content hashes are used, and each official set keeps its
    share of the whole.

    Args:
        hashes: Hex sha256 of each row's content.
        labels: Each row's label.
        official: Whether each row is in the official test set.
        limit: Largest number of rows to keep; 0: all.
        validation: Whether each row is in the official validation set; None: there is none.
    """
    ranks = [2 * test for test in official]
    if validation is not None:
        ranks = [rank or int(own) for rank, own in zip(ranks, validation, strict=True)]
    groups: dict[str, list[int]] = defaultdict(list)
    for row, content in enumerate(hashes):
        groups[content].append(row)
    kept: list[int] = []
    sets: dict[int, list[int]] = {1: [], 2: []}  # official validation and test set
    conflicts: list[int] = []
    leaks: list[int] = []
    duplicates = 0
    for rows in groups.values():
        rank = max(ranks[row] for row in rows)
        inside = [row for row in rows if ranks[row] == rank]
        outside = [row for row in rows if ranks[row] != rank]
        if rank:
            sets[rank] += inside
            leaks += outside
            known = {labels[row] for row in inside}
            wrong = [row for row in outside if labels[row] not in known]
            conflicts += wrong
            duplicates += len(outside) - len(wrong)
        elif len({labels[row] for row in inside}) > 1:
            conflicts += inside
        else:
            kept.append(inside[0])
            duplicates += len(inside) - 1
    total = len(kept) + len(sets[1]) + len(sets[2])
    if 0 < limit < total:
        left = limit
        for rank in (2, 1):
            rows = sets[rank]
            share = min(left, max(1, round(limit * len(rows) / total))) if rows else 0
            sets[rank] = sorted(rows, key=lambda row: (hashes[row], labels[row]))[:share]
            left -= share
        kept = sorted(kept, key=lambda row: hashes[row])[:left]
    return Selection(
        np.array(sorted(kept + sets[1] + sets[2]), dtype=np.int64),
        duplicates,
        tuple(sorted(conflicts)),
        tuple(sorted(leaks)),
    )

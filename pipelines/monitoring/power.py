"""How often a look alarms, against how many examples it has: the power of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.monitoring.comparison import RATE, Examples, Kind, alarms, compare


@dataclass(frozen=True)
class Power:
    """How often looks of one size alarmed.

    Attributes:
        examples: Of each look.
        share: Of the looks that alarmed.
        by_kind: Kind of test → share of the looks that it alone would have let alarm at the
            whole rate.
    """

    examples: int
    share: float
    by_kind: dict[Kind, float]


def power_curve(
    reference: Examples,
    pool: Examples,
    sizes: Sequence[int],
    *,
    rate: float = RATE,
    looks: int = 200,
    seed: int = 0,
) -> list[Power]:
    """Return how often looks at examples of a pool alarm.

    Args:
        reference: Held-out examples.
        pool: Of which each look draws its examples without replacement. Of unchanged inputs the
            curve shows the false alarms, of shifted ones the power.
        sizes: Examples of a look; sizes larger than the pool are left out.
        rate: False alarms per look.
        looks: Of each size.
        seed: Of the draws.

    Returns:
        One point for each size, in order.
    """
    draw = np.random.default_rng(seed)
    found = []
    for size in sizes:
        if size > pool.count:
            continue
        alone: dict[Kind, int] = {}
        total = 0
        for _ in range(looks):
            seen = pool.taken(draw.choice(pool.count, size, replace=False))
            tests = compare(reference, seen, rate, minimum=1)
            total += bool(alarms(tests))
            for kind in dict.fromkeys(one.kind for one in tests):
                ours = [one for one in tests if one.kind == kind]
                hit = any(one.p <= rate / len(ours) for one in ours)
                alone[kind] = alone.get(kind, 0) + hit
        by_kind: dict[Kind, float] = {kind: count / looks for kind, count in alone.items()}
        found.append(Power(size, total / looks, by_kind))
    return found

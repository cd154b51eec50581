"""Who decomposes what: the work of a reparametrisation shared out over the ranks.

A decomposition is not split, so this is scheduling of whole jobs on equal machines. Largest first,
each to the rank with the least so far, ends within 4/3 − 1/(3R) of the best assignment (Graham,
"Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17, 1969, Theorem 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Of N³ multiply-adds, as docs/options.md counts them; Newton–Schulz at 20 iterations of 3.
PRECONDITIONED = 1.0
ROOT_WORK = {"cholesky": 4 / 3, "pca": 10.0, "zca": 12.0, "newton-schulz": 60.0}


@dataclass(frozen=True)
class Assignment:
    """Jobs and the ranks that own them.

    Attributes:
        costs: of each job, in multiply-adds.
        ranks: number of ranks.
        owners: rank of each job.
        order: jobs by falling cost, the order in which they are worked on and exchanged.
    """

    costs: tuple[float, ...]
    ranks: int
    owners: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def loads(self) -> tuple[float, ...]:
        """Work of each rank, in multiply-adds."""
        jobs = range(len(self.costs))
        return tuple(
            math.fsum(self.costs[job] for job in jobs if self.owners[job] == rank)
            for rank in range(self.ranks)
        )

    @property
    def largest_share(self) -> float:
        """The busiest rank's part of the whole work; 0 if there is none."""
        total = math.fsum(self.costs)
        return max(self.loads) / total if total > 0 else 0.0

    @property
    def ideal(self) -> float:
        """What the busiest rank cannot go below: an equal part, or the largest single job."""
        return max(math.fsum(self.costs) / self.ranks, max(self.costs, default=0.0))


def assign(costs: Sequence[float], ranks: int) -> Assignment:
    """Give every job to a rank, largest first; ties go to the lowest index and the lowest rank.

    Args:
        costs: of each job, in multiply-adds, finite and not negative.
        ranks: number of ranks, at least 1.

    Returns:
        The same assignment for the same arguments, on every machine.

    Raises:
        ValueError: if `ranks` is not positive, or a cost is negative or not finite.
    """
    if ranks < 1:
        raise ValueError(f"ranks={ranks!r}: at least 1 is needed")
    for cost in costs:
        if not (math.isfinite(cost) and cost >= 0):
            raise ValueError(f"costs: {cost!r} is among them; allowed are finite ones from 0 on")
    order = sorted(range(len(costs)), key=lambda job: (-costs[job], job))
    loads, owners = [0.0] * ranks, [0] * len(costs)
    for job in order:
        owners[job] = min(range(ranks), key=lambda rank: (loads[rank], rank))
        loads[owners[job]] += costs[job]
    return Assignment(tuple(map(float, costs)), ranks, tuple(owners), tuple(order))


def refresh_cost(
    groups: int,
    features: int,
    outputs: int,
    *,
    root: str,
    preconditioned: bool = False,
    full: bool = True,
    momentum: bool = True,
    two_sided: int = 0,
) -> float:
    """Multiply-adds of one unit's reparametrisation, as docs/options.md counts them.

    With N features, M outputs times taps and G groups that is G times

        preconditioned:  N³ for P, M N for d, and 2 M N² for momentum
        else:       the root's share of N³, 2 M N² for V, and 2 M N² for momentum
        two-sided:  besides, the root's share of O³ for R, and 2 M O N for V

    and N² where U is diagonal. How few leading directions P is made of is known only afterwards, so
    it counts as whole. Measures of how white the input is cost products with vectors, N²
    each, and are left out.

    Args:
        groups: G.
        features: N, input features of a group.
        outputs: M, output features of a group times taps.
        root: one of `roots.ROOTS`.
        preconditioned: whether the layers are preconditioned.
        full: whether U is more than a diagonal.
        momentum: whether the optimizer's state is carried into the new basis.
        two_sided: O, output features of a group, for two-sided whitening; else 0.
    """
    cubed = float(features) ** 3
    if not full:
        work = float(features) ** 2 + outputs * features
    elif preconditioned:
        work = PRECONDITIONED * cubed + outputs * features
    else:
        work = ROOT_WORK[root] * cubed + 2.0 * outputs * features**2
    if momentum:
        work += 2.0 * outputs * features**2
    if two_sided:
        work += ROOT_WORK[root] * float(two_sided) ** 3 + 2.0 * outputs * two_sided * features
    return groups * work

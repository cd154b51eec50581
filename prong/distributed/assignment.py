"""Distribution of a reparametrisation's decompositions over the ranks.

A decomposition is not split, so this is the scheduling of whole jobs on identical machines. The
jobs are taken by falling cost, and each goes to the rank with the least work so far. The longest
load is then at most 4/3 − 1/(3R) times that of the best assignment (Graham, "Bounds on
Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17, 1969, Theorem 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# In units of N³ multiply-adds, as in docs/options.md. Newton–Schulz: 20 iterations of 3 products.
PRECONDITIONED = 1.0
ROOT_WORK = {"cholesky": 4 / 3, "pca": 10.0, "zca": 12.0, "newton-schulz": 60.0}


@dataclass(frozen=True)
class Assignment:
    """Jobs and the ranks that own them.

    Attributes:
        costs: cost of each job, in multiply-adds.
        ranks: number of ranks.
        owners: the rank that does each job.
        order: indices of the jobs by falling cost; they are computed and exchanged in this order.
    """

    costs: tuple[float, ...]
    ranks: int
    owners: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def loads(self) -> tuple[float, ...]:
        """Total cost of each rank's jobs, in multiply-adds."""
        jobs = range(len(self.costs))
        return tuple(
            math.fsum(self.costs[job] for job in jobs if self.owners[job] == rank)
            for rank in range(self.ranks)
        )

    @property
    def largest_share(self) -> float:
        """The busiest rank's share of the total cost, from 0 to 1; 0 if the total cost is 0."""
        total = math.fsum(self.costs)
        return max(self.loads) / total if total > 0 else 0.0

    @property
    def ideal(self) -> float:
        """A lower bound of the largest share: an equal share, or the share of the largest job."""
        return max(math.fsum(self.costs) / self.ranks, max(self.costs, default=0.0))


def assign(costs: Sequence[float], ranks: int) -> Assignment:
    """Give every job to a rank, largest first; ties go to the lowest index and the lowest rank.

    Args:
        costs: cost of each job, in multiply-adds; finite and not negative.
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
            raise ValueError(
                f"costs: {cost!r} is not allowed; each cost must be finite and at least 0"
            )
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

    With N features, M outputs times taps and G groups, the cost is G times

        preconditioned:  N³ for P, M N for d, and 2 M N² for momentum
        else:            a · N³ for the root, 2 M N² for V, and 2 M N² for momentum
        two-sided:       in addition a · O³ for R, and 2 M O N for V

    with the factor a of the root from `ROOT_WORK`, and N² where U is diagonal. P counts as a whole
    matrix, because the number of leading directions is known only afterwards. The measures of
    conditioning need only products with vectors, N² each, and are left out.

    Args:
        groups: G.
        features: N, input features of a group.
        outputs: M, output features of a group times taps.
        root: one of `roots.ROOTS`.
        preconditioned: whether the layers are preconditioned.
        full: False if U is diagonal.
        momentum: whether the optimizer's state is transformed into the new basis.
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

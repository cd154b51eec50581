"""Distribution of a reparametrisation's decompositions over the ranks.

A decomposition is not split, so this is the scheduling of whole jobs on identical machines. The
jobs are taken by falling cost, and each goes to the rank with the least work so far. The longest
load is then at most 4/3 − 1/(3R) times that of the best assignment (Graham, "Bounds on
Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17, 1969, Theorem 2).

Where that leaves the busiest rank with much more than an equal part, what can be divided of large
jobs, the transport of momentum, is taken out of them and fills up the other ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

UNEVEN = 1.3
"""Equal parts of all work that the busiest rank may have before large jobs are divided."""
LEAST = 1e8
"""Multiply-adds of a part that is worth its messages: about 10 ms of a processor."""
_PIECE = 0.05  # smallest share of a part
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
        divided: for each job, the part of its cost that its `helpers` share; none if empty.
        helpers: for each job, ranks and the share of that part that each does; none if empty.
    """

    costs: tuple[float, ...]
    ranks: int
    owners: tuple[int, ...]
    order: tuple[int, ...]
    divided: tuple[float, ...] = ()
    helpers: tuple[tuple[tuple[int, float], ...], ...] = ()

    def helpers_of(self, job: int) -> tuple[tuple[int, float], ...]:
        """Ranks that share a part of a job, and the share of each; empty if none does."""
        return self.helpers[job] if self.helpers else ()

    @property
    def whole(self) -> tuple[float, ...]:
        """Cost of what one rank does of each job, in multiply-adds."""
        divided = self.divided or (0.0,) * len(self.costs)
        return tuple(cost - part for cost, part in zip(self.costs, divided, strict=True))

    @property
    def loads(self) -> tuple[float, ...]:
        """Total cost of each rank's jobs, in multiply-adds."""
        jobs, whole = range(len(self.costs)), self.whole
        return tuple(
            math.fsum(
                [
                    *(whole[job] for job in jobs if self.owners[job] == rank),
                    *(
                        share * self.divided[job]
                        for job in jobs
                        for helper, share in self.helpers_of(job)
                        if helper == rank
                    ),
                ]
            )
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
        return max(math.fsum(self.costs) / self.ranks, max(self.whole, default=0.0))


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


def assign_divided(costs: Sequence[float], parts: Sequence[float], ranks: int) -> Assignment:
    """Give jobs to ranks as `assign` does, and divide parts of large ones where that is uneven.

    Args:
        costs: cost of each job, in multiply-adds; finite and not negative.
        parts: what any number of ranks can share of each job's cost.
        ranks: number of ranks, at least 1.

    Returns:
        The assignment of whole jobs, if the busiest rank has at most `UNEVEN` equal parts of all
        work or no part is worth the messages; otherwise one with divided parts. The same for the
        same arguments, on every machine.

    Raises:
        ValueError: as `assign`.
    """
    plain = assign(costs, ranks)
    equal = math.fsum(plain.costs) / ranks
    divided = [part if part >= LEAST else 0.0 for part in parts]
    if not any(divided) or max(plain.loads) <= UNEVEN * equal:
        return plain
    first = assign([cost - part for cost, part in zip(costs, divided, strict=True)], ranks)
    loads = list(first.loads)
    # There is room for all parts below this, so the least busy rank always has some.
    full = max(equal, max(loads))
    helpers: list[tuple[tuple[int, float], ...]] = [()] * len(divided)
    for job in sorted(range(len(divided)), key=lambda job: (-divided[job], job)):
        left, pieces = divided[job], []
        while left > 0:
            rank = min(range(ranks), key=lambda rank: (loads[rank], rank))
            piece = min(left, max(full - loads[rank], _PIECE * divided[job]))
            if left - piece < _PIECE * divided[job]:
                piece = left
            loads[rank] += piece
            left -= piece
            pieces.append((rank, piece / divided[job]))
        helpers[job] = tuple(pieces)
    return Assignment(plain.costs, ranks, first.owners, plain.order, tuple(divided), tuple(helpers))


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

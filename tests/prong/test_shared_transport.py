"""Ranks share the momentum of a large layer by rows: the same bits on all, one process's answer."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import run
from shared_runs import QUICK
from test_sharing import _trained, check

from benchmarks import sharing
from prong.distributed import assignment
from prong.distributed.assignment import assign, assign_divided
from prong.refresh import shared_transport
from prong.refresh.shared_transport import boundaries

SIZES = (1, 4)
CASES = {name: QUICK[name] for name in ("preconditioned", "leading")}
parts = st.lists(st.tuples(st.floats(0, 1e12), st.floats(0, 1)), min_size=1, max_size=20)


def _divided(rank, size):
    """Train with every unit's momentum shared out; count what this rank exchanged."""
    assignment.LEAST, assignment.UNEVEN = 1e-3, 0.0
    helped = [0]
    start = shared_transport.SharedTransport.start

    def counted(self, *arguments):
        helped[0] += len(self._helpers)
        return start(self, *arguments)

    shared_transport.SharedTransport.start = counted
    return {**_trained(rank, size, CASES, SIZES), "helped": helped[0]}


def test_shared_rows_leave_the_same_bits_on_all_ranks_and_the_answer_of_one(tmp_path):
    ranks = run(tmp_path / "4", 4, _divided)
    assert ranks[0]["helped"] > 10
    check(ranks, CASES, SIZES)


@given(parts, st.integers(1, 9))
def test_what_is_divided_is_done_once_and_evens_out(jobs, size):
    costs = [cost for cost, _ in jobs]
    shared = [cost * share for cost, share in jobs]
    found = assign_divided(costs, shared, size)
    assert found == assign_divided(costs, shared, size)
    assert math.fsum(found.loads) == pytest.approx(math.fsum(costs), rel=1e-9)
    assert max(found.loads) <= max(assign(costs, size).loads) * (1 + 1e-9) or found.helpers
    for job, helpers in enumerate(found.helpers):
        if helpers:
            assert found.divided[job] >= assignment.LEAST
            assert math.fsum(share for _, share in helpers) == pytest.approx(1)
            rows = boundaries(helpers, 17)
            assert [begin for begin, _ in rows] == [0, *(end for _, end in rows[:-1])]
            assert rows[-1][1] == 17


def test_small_or_even_work_stays_whole():
    assert assign_divided([8e7, 1.0], [7e7, 0.0], 2) == assign([8e7, 1.0], 2)
    assert assign_divided([1e9, 1e9], [9e8, 9e8], 2) == assign([1e9, 1e9], 2)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_auto_encoders_busiest_rank_has_no_more_than_a_third_above_an_equal_part(size):
    _, natural = sharing.natural_of("autoencoder", "preconditioned", "cholesky")
    owners = sharing.assignment(natural.units, natural.settings, size)
    assert max(owners.loads) <= 1.3 * math.fsum(owners.costs) / size

"""Work is shared out whole, evenly and the same way everywhere; triangles keep every bit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prong.distributed.assignment import ROOT_WORK, assign, refresh_cost
from prong.linalg.roots import ROOTS
from prong.linalg.triangle import pack_upper, triangle_size, unpack_upper

costs = st.lists(st.floats(0, 1e12, allow_subnormal=False), max_size=40)
ranks = st.integers(1, 9)


@given(costs, ranks)
def test_every_job_has_one_owner_and_the_books_balance(work, size):
    found = assign(work, size)
    assert found == assign(list(work), size)
    assert sorted(found.order) == list(range(len(work)))
    assert [work[job] for job in found.order] == sorted(work, reverse=True)
    assert all(0 <= owner < size for owner in found.owners)
    assert math.fsum(found.loads) == pytest.approx(math.fsum(work), rel=1e-12)
    busiest = max(found.loads)
    assert busiest >= found.ideal * (1 - 1e-12)
    total = math.fsum(work)
    assert found.largest_share == (busiest / total if total else 0)
    if size >= len(work):
        assert busiest == max(work, default=0)


@given(st.lists(st.integers(0, 1000), max_size=7), st.integers(1, 3))
def test_it_stays_within_grahams_bound_of_the_best(work, size):
    best = min(
        max(
            sum(cost for cost, owner in zip(work, owners, strict=True) if owner == rank)
            for rank in range(size)
        )
        for owners in itertools.product(range(size), repeat=len(work))
    )
    assert max(assign(work, size).loads) <= best * (4 / 3 - 1 / (3 * size)) + 1e-9


@given(st.data(), ranks)
def test_another_order_of_the_jobs_changes_no_load(data, size):
    work = data.draw(costs)
    shuffled = data.draw(st.permutations(range(len(work))))
    first, second = assign(work, size), assign([work[job] for job in shuffled], size)
    assert first.loads == second.loads
    if len(set(work)) == len(work):
        assert second.owners == tuple(first.owners[job] for job in shuffled)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="ranks=0: at least 1"):
        assign([1.0], 0)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="costs: "):
            assign([wrong], 2)


def test_costs_are_those_that_are_documented():
    assert set(ROOT_WORK) == set(ROOTS)
    assert refresh_cost(1, 10, 0, root="pca", momentum=False) == 10 * 10**3
    assert refresh_cost(3, 10, 20, root="pca", preconditioned=True) == 3 * (
        1000 + 200 + 2 * 20 * 100
    )
    assert refresh_cost(1, 10, 20, root="zca") == 12e3 + 4 * 20 * 100
    two_sided = refresh_cost(1, 10, 20, root="pca", two_sided=5)
    assert two_sided == refresh_cost(1, 10, 20, root="pca") + 10 * 125 + 2 * 20 * 5 * 10
    assert refresh_cost(1, 100, 1, root="pca", full=False, momentum=False) == 100**2 + 100


@given(st.integers(0, 12), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_triangles_come_back_bit_for_bit(size, groups, symmetric, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(groups, size, size, generator=generator)
    zeros = torch.randint(0, 4, matrix.shape, generator=generator)
    matrix = torch.where(zeros == 0, 0.0, torch.where(zeros == 1, -0.0, matrix))
    packed = pack_upper(matrix)
    assert packed.shape == (groups, triangle_size(size))
    expected = matrix.triu()
    if symmetric:
        upper = torch.ones(size, size, dtype=torch.bool).triu()
        expected = torch.where(upper, matrix, matrix.transpose(1, 2))
    for given_matrix in (matrix, matrix.transpose(1, 2).contiguous().transpose(1, 2)):
        found = unpack_upper(pack_upper(given_matrix), size, symmetric=symmetric)
        assert torch.equal(found.view(torch.int32), expected.contiguous().view(torch.int32))

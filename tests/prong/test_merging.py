"""Any parts of the samples merge to the moments of all; roots have the form of their message."""

from __future__ import annotations

import copy

import pytest
import torch
from exact import EXACT, reparametrizer
from hypothesis import given
from hypothesis import strategies as st
from merged_moments import WIDE, assert_moments_of, gathered
from torch import nn

import prong
from prong.distributed.merging import scatter_about, sums
from prong.linalg import roots
from prong.linalg.triangle import unpack_upper
from prong.statistics.unit_variances import UnitVariances

parts = st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4)


@given(parts, st.integers(0, 99))
def test_any_parts_empty_ones_included_merge_to_the_moments_of_all(sizes, seed):
    ranks, samples = gathered(sizes, seed)
    total = torch.stack([sums([moments]) for moments in ranks]).sum(0)
    assert torch.allclose(total, sums(ranks), rtol=1e-13)
    mean = (total[3:] / total[0].clamp(min=1)).reshape(2, 5)
    packed = sum(scatter_about([moments], mean, WIDE) for moments in ranks)
    assert torch.isfinite(packed).all()
    assert_moments_of(total[0], mean, unpack_upper(packed, 5, symmetric=True), samples)
    first, *rest = ranks
    for moments in rest:
        first.merge(moments)
    covariance = first.covariance() * first.count.clamp(min=1)
    assert_moments_of(first.count, first.mean, covariance, samples)


@given(st.integers(1, 9), st.integers(0, 99))
def test_roots_have_the_form_that_their_message_has(size, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, size, size, generator=generator, dtype=WIDE)
    covariance, damping = rows @ rows.transpose(1, 2), torch.full((2,), 0.1, dtype=WIDE)
    for name in ("zca", "newton-schulz"):
        for method in (roots._METHODS[name], roots._BY_EIGENVALUES[name]):
            for matrix in method(covariance, damping):
                assert torch.equal(matrix, matrix.transpose(1, 2))
    first = roots._METHODS["cholesky"](covariance, damping)
    again = roots._BY_EIGENVALUES["cholesky"](covariance, damping)
    for one, other in zip(first, again, strict=True):
        assert not other.triu(1).any()
        assert (one - other).abs().max() <= 1e-9 * one.abs().max()


LAYERS = [
    (nn.Linear(4, 2), (0, 5, 4)),
    (nn.Linear(4, 2), (0, 4)),
    (nn.Conv1d(4, 2, 3, padding=1, padding_mode="circular"), (0, 4, 6)),
    (nn.Conv2d(4, 2, 3, groups=2), (0, 4, 6, 6)),
    (nn.Conv3d(4, 2, 3), (0, 4, 6, 6, 6)),
    (nn.ConvTranspose2d(4, 2, 3), (0, 4, 6, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize(
    "options", [{"mode": mode} for mode in ("activations", "preconditioned")]
    + [{"batch_diagonal": True, "two_sided": prong.TwoSided()}]
)  # fmt: skip
def test_an_empty_batch_leaves_no_trace(layer, shape, options):
    model = prong.whiten(nn.Sequential(copy.deepcopy(layer)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    natural = reparametrizer(model, optimizer, samples=4, **{**EXACT, **options})
    model(torch.randn(3, *shape[1:])).square().mean().backward()
    before = natural.state_dict()["tensors"]
    model(torch.randn(shape)).sum().backward()
    for name, value in natural.state_dict()["tensors"].items():
        assert torch.equal(value, before[name]), name
    assert natural.refresh().layers["0"].examples == 3


def test_variances_of_no_samples_stay_zero():
    variances = UnitVariances(torch.zeros(1, 3))
    variances.add(torch.zeros(1, 0, 3), torch.zeros(1, 3), torch.eye(3).unsqueeze(0))
    assert not any(bool(each.any()) for each in vars(variances).values())

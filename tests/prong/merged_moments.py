"""Moments of some ranks and their micro-batches, and what they should merge to."""

from __future__ import annotations

import torch

from prong.statistics.moments import Moments

WIDE = torch.float64


def gathered(sizes, seed):
    """Moments of each rank from its micro-batches, and all samples."""
    generator = torch.Generator().manual_seed(seed)
    ranks, samples = [], [torch.empty(2, 0, 5, dtype=WIDE)]
    for rank in sizes:
        moments = Moments(2, 5, dtype=WIDE, device=torch.device("cpu"))
        for number in rank:
            samples.append(torch.randn(2, number, 5, generator=generator, dtype=WIDE) + 100)
            moments.add(samples[-1], number)
        ranks.append(moments)
    return ranks, torch.cat(samples, 1)


def assert_moments_of(count, mean, scatter, samples):
    assert float(count) == samples.shape[1]
    if samples.shape[1]:
        expected = samples.mean(1)
        assert (mean - expected).abs().max() <= 1e-12 * expected.abs().max()
        rows = samples - expected.unsqueeze(1)
        expected = rows.transpose(1, 2) @ rows
        assert (scatter - expected).abs().max() <= 1e-12 * max(1, expected.abs().max()) * 100

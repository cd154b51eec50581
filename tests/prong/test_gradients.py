"""Gradients over ranks: equal bits whatever the buckets, equal to those of the whole batch."""

from __future__ import annotations

import torch
from processes import run, share
from torch import nn

import prong
from prong.distributed.comm_hooks import mean_by_parameter, sum_by_parameter

SAMPLES = 12


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(37, 53), nn.Tanh(), nn.Linear(53, 29), nn.Linear(29, 5)).to(
        dtype
    )


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, 37, generator=generator, dtype=dtype)


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def _hooked(rank, size):
    part, found = share(SAMPLES, rank, size), {}
    for cap in (1e-3, 25.0):
        model = network()
        parallel = nn.parallel.DistributedDataParallel(
            model, bucket_cap_mb=cap, gradient_as_bucket_view=cap < 1
        )
        parallel.register_comm_hook(None, sum_by_parameter)
        for step in range(3):  # The buckets are built anew after the first.
            parallel(data()[part]).square().sum().backward()
            found[cap, step] = gradients(model)
            model.zero_grad()
    model = network(torch.float64)
    parallel = nn.parallel.DistributedDataParallel(model)
    parallel.register_comm_hook(torch.distributed.group.WORLD, mean_by_parameter)
    rows = data(torch.float64)[rank::size]
    with parallel.no_sync():
        parallel(rows[:2]).square().sum().backward()
    parallel(rows[2:]).square().sum().backward()
    found["mean"] = gradients(model)
    model = network(torch.float64)
    parallel = nn.parallel.DistributedDataParallel(model)
    parallel.register_comm_hook(None, sum_by_parameter)
    parallel(data(torch.float64)[part]).square().sum().backward()
    found["sum"] = gradients(model)
    return found


def test_bits_depend_on_no_bucket_and_sums_are_those_of_the_whole_batch(tmp_path):
    ranks = run(tmp_path / "3", 3, _hooked)
    first = ranks[0][25.0, 0]
    for found in ranks:
        for cap in (1e-3, 25.0):
            for step in range(3):
                assert all(map(torch.equal, found[cap, step], first)), (cap, step)
    model = network(torch.float64)
    model(data(torch.float64)).square().sum().backward()
    for found in ranks:
        for name, factor in (("sum", 1), ("mean", 3)):
            for part, whole in zip(found[name], gradients(model), strict=True):
                assert (factor * part - whole).abs().max() <= 1e-12 * whole.abs().max()
    assert prong.sum_by_parameter is sum_by_parameter

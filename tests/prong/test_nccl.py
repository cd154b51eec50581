"""Data parallel over NCCL: the ranks agree to the bit, and with gloo on the CPU to rounding.

With one CUDA device there is one rank, whose group and hooks are still NCCL's. The same program
runs over gloo everywhere.
"""

from __future__ import annotations

import pytest
import torch
from devices import CUDA
from exact import EXACT, reparametrizer
from processes import run, share
from small_runs import assert_close, assert_same_bits
from torch import nn

import prong

TOTAL = 24


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(TOTAL, 2, 6, 6, generator=generator) + 0.5
    return x, torch.randint(0, 4, (TOTAL,), generator=generator)


def trained(rank, size, device, options):
    """Eight steps, two reparametrisations: Φ, weights and running statistics, on the CPU."""
    torch.backends.cudnn.allow_tf32 = False
    place = torch.device("cuda", rank) if device == "cuda" else torch.device("cpu")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(216, 16),
        nn.Tanh(),
        nn.Linear(16, 4),
    )
    prong.whiten(prong.synchronise_batch_norm(model)).to(place)
    parallel = nn.parallel.DistributedDataParallel(
        model, device_ids=[rank] if device == "cuda" else None, forward_sync_buffers=False
    )
    parallel.register_comm_hook(None, prong.sum_by_parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {**EXACT, "period": 3, "samples": 2 * TOTAL, "damping": 0.1, **options}
    natural = reparametrizer(parallel, optimizer, **options)
    part = share(TOTAL, rank, size)
    natural.initialize([batch(99)[0][part].to(place)])
    for step in range(8):
        x, y = (tensor[part].to(place) for tensor in batch(step))
        loss = nn.functional.cross_entropy(parallel(x), y, reduction="sum") / TOTAL
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        natural.step()
    report = natural.report.layers["4"]
    assert report.updated
    assert report.examples == 2 * TOTAL
    plain = {f"folded.{k}": v for k, v in prong.fold(model).state_dict().items()}
    return {k: v.detach().cpu() for k, v in (dict(model.state_dict()) | plain).items()}


OPTIONS = [{"root": "zca"}, {"mode": "preconditioned"}, {"root": "zca", "side_stream": True}]


def agree(ranks, expected):
    for other in ranks[1:]:
        assert_same_bits(other, ranks[0])
    assert_close(ranks[0], expected, 1e-4)


def test_two_ranks_over_gloo_are_one(tmp_path):
    (alone,) = run(tmp_path / "1", 1, trained, "cpu", OPTIONS[1])
    agree(run(tmp_path / "2", 2, trained, "cpu", OPTIONS[1]), alone)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=["fold", "preconditioned", "side stream"])
def test_ranks_over_nccl_agree_to_the_bit_and_with_gloo(device, size, options, tmp_path):
    if torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} CUDA devices")
    (expected,) = run(tmp_path / "gloo", 1, trained, "cpu", options)
    agree(run(tmp_path / "nccl", size, trained, device, options, backend="nccl"), expected)

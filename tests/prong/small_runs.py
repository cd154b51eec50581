"""Small networks, seeded numbers, one step of training, and equality of what is left after it."""

from __future__ import annotations

import itertools

import torch
from torch import nn

import prong

WIDE = torch.float64


def normal(*shape, seed=0):
    """Standard normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=WIDE)


def dense(sizes, dtype=WIDE, seed=0):
    """Dense layers of these sizes with tanh between them, as torch initialises them."""
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def train_step(model, optimizer, natural, x, y, pieces=1, loss=nn.functional.cross_entropy):
    """One optimizer step on a batch, in so many micro-batches; the report of a reparametrisation.

    `natural.control` holds the scales of this step afterwards.
    """
    for part, target in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
        (loss(model(part), target) / pieces).backward()
    optimizer.step()
    optimizer.zero_grad()
    return natural.step()


def folded(model):
    """All parameters of the plain model, flat, in float64 on the CPU."""
    return torch.cat([p.detach().flatten() for p in prong.fold(model).parameters()]).double().cpu()


def assert_same_bits(found, expected, where=None):
    """Equality of two dicts of tensors."""
    assert found.keys() == expected.keys(), where
    for name, value in expected.items():
        assert torch.equal(found[name], value), (where, name)


def assert_close(found, expected, tolerance, where=None):
    """Agreement of tensors by name, relative to the largest number of each, and to 1 at least."""
    for name, value in expected.items():
        if value.numel() and value.is_floating_point():
            limit = tolerance * max(1, float(value.abs().max()))
            assert (found[name] - value).abs().max() <= limit, (where, name)

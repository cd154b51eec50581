"""What is saved: names that earlier checkpoints have too, and what each of several ranks takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prong
from prong.refresh.saved_state import shared_moments

MOMENTS = {"count", "examples", "mean", "rejected", "scatter"}
FOLD = {"mode": "fold"}


def saved(**options):
    """The names in a model's state and in the reparametrizer's, of one layer in mid-window."""
    torch.manual_seed(0)
    model = prong.whiten(nn.Sequential(nn.Linear(40, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    natural = prong.Reparametrizer(model, optimizer, period=10, **options)
    x = torch.randn(400, 2) @ torch.randn(2, 40)
    natural.initialize([x])
    model(x[:20]).square().mean().backward()
    optimizer.step()
    natural.step()
    return model, natural


@pytest.mark.parametrize(
    ("options", "buffers", "tensors"),
    [
        ({}, {"precision_matrix", "precision_damping"}, set()),
        ({"savings": prong.Savings(leading=None)}, {"precision_matrix"}, set()),
        (FOLD, {"whitener"}, set()),
        (
            {**FOLD, "two_sided": prong.TwoSided("empirical")},
            {"whitener", "output_whitener"},
            {f"0.0.backward_moments.{name}" for name in MOMENTS},
        ),
        (
            {**FOLD, "whitening": prong.Whitening(batch_diagonal=True)},
            {"whitener"},
            {"0.damping"},
        ),
    ],
)
def test_names_stay(options, buffers, tensors):
    model, natural = saved(**options)
    inner = {"whitened_bias"} | ({"whitened_weight"} if "whitener" in buffers else set())
    names = {"weight", "bias", "mean", *buffers}
    assert set(model.state_dict()) == {f"0.{name}" for name in names | inner}
    assert set(model.state_dict(keep_vars=True)) == {f"0.{name}" for name in names}
    state = natural.state_dict()
    moments = {f"0.0.moments.{name}" for name in MOMENTS}
    assert set(state["tensors"]) == moments | tensors | {"0.weight_norm"}
    assert set(state["meta"]) == {
        "version", "steps", "gathered", "started", "batches_seen", "fallbacks", "control"
    }  # fmt: skip


def test_a_number_that_is_not_kept_any_more_is_ignored():
    """`skipped` counted the refreshes that an option, since removed, had left out."""
    _, natural = saved()
    state = natural.state_dict()
    state["meta"]["skipped"] = 3
    natural.load_state_dict(state)
    assert natural.state_dict()["meta"]["steps"] == 1


def test_after_another_number_of_ranks_moments_are_shared_and_the_rest_is_the_same_on_all():
    """A rank whose weight norm became 0 would hold its steps to another bound than the first."""
    layer = prong.whiten(nn.Sequential(nn.Linear(3, 2)))
    parts = []
    for _ in range(2):
        natural = prong.Reparametrizer(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
        natural.initialize([torch.randn(50, 3)])
        layer(torch.randn(7, 3)).sum().backward()
        parts.append(natural.state_dict()["tensors"])
        natural.detach()
    first, second = (shared_moments(parts, rank) for rank in (0, 1))
    assert first.keys() == second.keys()
    assert float(first["0.weight_norm"]) > 0
    for name, value in first.items():
        of_moments = f"{name.rpartition('.')[0]}.scatter" in first
        assert torch.equal(second[name], torch.zeros_like(value) if of_moments else value)

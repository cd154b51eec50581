"""A checkpoint of an earlier version loads: what is saved keeps its names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prong

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
    assert set(model.state_dict()) == {f"0.{name}" for name in {"weight", "bias", "mean", *buffers}}
    state = natural.state_dict()
    moments = {f"0.0.moments.{name}" for name in MOMENTS}
    assert set(state["tensors"]) == moments | tensors | {"0.weight_norm"}
    assert set(state["meta"]) == {
        "version", "steps", "gathered", "batches_seen", "fallbacks", "control"
    }  # fmt: skip


def test_a_number_that_is_not_kept_any_more_is_ignored():
    """`skipped` counted the refreshes that an option, since removed, had left out."""
    _, natural = saved()
    state = natural.state_dict()
    state["meta"]["skipped"] = 3
    natural.load_state_dict(state)
    assert natural.state_dict()["meta"]["steps"] == 1

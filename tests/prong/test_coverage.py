"""Which layers `whiten` reaches and why not, as `coverage` lists and the log says it."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import prong


def test_coverage_lists_every_module_with_parameters_and_why():
    embedding = nn.Embedding(7, 4)
    tied = nn.Linear(4, 7, bias=False)
    tied.weight = embedding.weight
    model = nn.Sequential(
        embedding,
        nn.Linear(4, 4),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.LayerNorm(4),
        nn.Linear(4, 4),
        tied,
    )
    before = {status.name: status for status in prong.coverage(model)}
    prong.whiten(model, exclude="4")
    listed = {status.name: status for status in prong.coverage(model)}
    assert set(before) == set(listed) >= {"0", "1", "2", "3", "4", "5"}
    assert [name for name, status in listed.items() if status.whitened] == ["1"]
    assert all(bool(status.reason) != status.whitened for status in listed.values())
    assert "parametrization" in listed["2"].reason
    assert listed["4"].reason == "excluded"
    assert "tied to a Embedding" in listed["5"].reason


@pytest.mark.filterwarnings("ignore:whitened .*Less than half:UserWarning")
def test_a_bias_shared_by_different_weights_keeps_both_canonical():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].bias = model[0].bias
    prong.whiten(model)
    assert [s.whitened for s in prong.coverage(model)] == [False, False, True]


def test_include_and_exclude_by_name_pattern_and_predicate():
    def whitened(**selection):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        return [s.name for s in prong.coverage(prong.whiten(model, **selection)) if s.whitened]

    assert whitened(include="1.*") == ["1.0", "1.1"]
    assert whitened(include=["0", "1.1"]) == ["0", "1.1"]
    assert whitened(exclude=lambda _, m: isinstance(m, nn.Linear)) == ["0"]
    assert whitened(include=lambda n, _: n.endswith("1"), exclude=["0"]) == ["1.1"]


@pytest.mark.parametrize(
    ("selection", "error", "words"),
    [
        ({"include": "nope"}, ValueError, "include='nope'"),
        ({"exclude": [3]}, TypeError, "exclude=3"),
        ({"exclude": "*"}, ValueError, "no layer can be whitened"),
    ],
)
def test_bad_selections_are_refused(selection, error, words):
    with pytest.raises(error, match=words):
        prong.whiten(nn.Sequential(nn.Linear(2, 2)), **selection)


def test_bad_models_are_refused():
    with pytest.raises(TypeError, match="model=3"):
        prong.whiten(3)
    model = prong.whiten(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="already whitened"):
        prong.whiten(model)
    with pytest.raises(ValueError, match="no layer can be whitened"):
        prong.whiten(nn.BatchNorm1d(3))


ALONE = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
    "parametrized": lambda layer: parametrize.register_parametrization(
        layer, "bias", nn.Identity()
    ),
    "weight pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("way", ALONE)
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 3), lambda: nn.Conv1d(3, 3, 1)])
def test_a_layer_whose_bias_alone_is_computed_stays_plain(way, make):
    model = nn.Sequential(make(), nn.Flatten(), nn.Linear(3, 30))
    ALONE[way](model[0])
    kind = type(model[0])
    x = torch.randn(4, 3) if isinstance(model[0], nn.Linear) else torch.randn(4, 3, 1)
    before = model(x)
    prong.whiten(model)
    status = {each.name: each for each in prong.coverage(model)}
    assert type(model[0]) is kind
    assert not status["0"].whitened
    assert "computed from other parameters" in status["0"].reason
    assert status["2"].whitened
    assert (model(x) - before).abs().max() < 1e-6


def told(caplog, model, **selection):
    """What `whiten` logs, once the model is whitened."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "prong"):
        prong.whiten(model, **selection)
    (record,) = [each for each in caplog.records if each.name == "prong"]
    assert record.levelname == "INFO"
    return record.getMessage()


def test_whiten_logs_what_it_reached(caplog):
    assert told(caplog, nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))) == (
        "whitened 2 of 2 layers, 100.0 % of the parameters of dense and convolutional layers"
    )
    # 25 + 12 numbers of dense layers; neither the table nor the norm counts.
    model = nn.Sequential(
        nn.Embedding(50, 4), nn.Linear(4, 5), nn.LayerNorm((2, 5)), nn.Linear(5, 2)
    )
    assert told(caplog, model, exclude="3") == (
        "whitened 1 of 2 layers, 67.6 % of the parameters of dense and convolutional layers; "
        "left plain: 3 (Linear): excluded"
    )
    # A shared weight counts once: 20 + 4 + 4 of 28.
    shared = nn.Sequential(nn.Linear(5, 4), nn.Linear(5, 4))
    shared[1].weight = shared[0].weight
    assert "whitened 2 of 2 layers, 100.0 %" in told(caplog, shared)


class Reversed(nn.Module):
    """A dense layer of another library, with a weight `[in, out]`."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs, outputs))


@pytest.mark.parametrize(
    "other",
    [
        lambda: Reversed(6, 6),
        lambda: nn.LSTM(6, 6),
        lambda: nn.Bilinear(4, 4, 4),
        lambda: nn.MultiheadAttention(6, 2),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
        lambda: prune.l1_unstructured(nn.Linear(6, 6), "weight", 0.5),
    ],
)
def test_whiten_warns_if_it_reached_less_than_half_and_nobody_asked_for_it(other, caplog):
    def model():
        return nn.Sequential(nn.Linear(3, 3), other())

    words = r"whitened 1 of . layers, .*left plain: 1.* \(\w+\): .*Less than half"
    with pytest.warns(UserWarning, match=words) as caught:
        prong.whiten(model())
    assert caught[0].filename == __file__
    assert "whitened 1 of" in told(caplog, model(), include="0")
    told(caplog, model(), exclude="1*")
    told(caplog, nn.Sequential(nn.Linear(30, 30), other()))


def test_a_long_list_is_cut(caplog):
    names = [str(index) for index in range(1, 15)]
    line = told(caplog, nn.Sequential(*[nn.Linear(2, 2) for _ in range(15)]), exclude=names)
    assert "10 (Linear): excluded; and 4 more (prong.coverage lists all)" in line

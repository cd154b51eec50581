"""`prong.check`: what makes a whitened model wrong is found and named, and nothing is touched."""

from __future__ import annotations

import itertools
import random
import warnings
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from checked_network import MODES, Net, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run
from random_networks import networks
from torch import nn
from torch.nn.utils import parametrize, prune

import prong


def everything(model):
    """Every bit and every object that a check could have changed."""
    modules = list(model.modules())
    return {
        "values": [v.detach().clone() for v in (*model.parameters(), *model.buffers())],
        "objects": [id(v) for m in modules for v in (*m._parameters.values(),)],
        "buffers": [(k, id(v)) for m in modules for k, v in m._buffers.items()],
        "attributes": [{k: id(v) for k, v in vars(m).items()} for m in modules],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        "modes": [m.training for m in modules],
        "random": [torch.get_rng_state(), *map(repr, [random.getstate()])],
    }


def assert_unchanged(before, after):
    for key, value in before.items():
        for left, right in zip(value, after[key], strict=True):
            if torch.is_tensor(left):
                assert torch.equal(left, right), key
            else:
                assert left == right, key


@settings(deadline=None, max_examples=40)
@given(networks(), st.sampled_from(MODES), st.booleans(), st.integers(0, 2))
def test_a_model_that_is_right_passes_and_stays_as_it_was(network, mode, two_sided, steps):
    model, shape = network
    two = prong.TwoSided() if two_sided and mode != "preconditioned" else None
    x = torch.randn(6, *shape, dtype=torch.float64) + 1
    trained(model.double(), x, mode, steps, two_sided=two)
    before = everything(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 'same' padding of even kernels
        result = prong.check(model, x)
    assert result.ok, str(result)
    assert result.difference < 1e-9
    assert result.folded < 1e-9
    assert "the function stays" in str(result)
    assert_unchanged(before, everything(model))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beside", ["weight", "bias"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_parameter_used_beside_its_layer_is_named(mode, beside, steps):
    x = torch.randn(8, 5, dtype=torch.float64)
    model, _ = trained(Net(beside).double(), x, mode, steps)
    before = everything(model)
    result = prong.check(model, x)
    assert not result.ok
    assert [each.name for each in result.layers] == ["b"]
    assert result.layers[0].difference > 1e-3
    assert "beside its layer" in result.layers[0].reason
    assert "b: its weight is used beside" in str(result)
    assert_unchanged(before, everything(model))


def test_a_head_that_starts_at_zero_hides_nothing():
    x = torch.randn(8, 5)
    result = prong.check(prong.whiten(Net("weight", head=False)), x)
    assert [each.name for each in result.layers] == ["b"]
    assert prong.check(prong.whiten(Net(head=False)), x).ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrower_types_have_room_for_rounding_and_no_more(dtype):
    torch.manual_seed(0)
    x = (0.001 * torch.randn(32, 5)).to(dtype)
    deep = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(5, 5), nn.ReLU())])
    assert prong.check(prong.whiten(deep.to(dtype)), x).ok
    result = prong.check(prong.whiten(Net("weight").to(dtype)), x)
    assert [each.name for each in result.layers] == ["b"]


PUT_ON = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "prune ": lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
    "weight_norm": lambda layer: nn.utils.weight_norm(layer),
    "spectral_norm": lambda layer: nn.utils.spectral_norm(layer),
    "parametrization": lambda layer: nn.utils.parametrizations.weight_norm(layer),
    "parametrization ": lambda layer: parametrize.register_parametrization(
        layer, "bias", nn.Identity()
    ),
}


@pytest.mark.parametrize("kind", PUT_ON)
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:UserWarning")
def test_what_was_put_on_after_whiten_is_named_also_if_outputs_agree(kind, steps, mode):
    x = torch.randn(8, 5, dtype=torch.float64)
    model, natural = trained(Net().double(), x, mode, steps)
    PUT_ON[kind](model.b)
    model.eval()(x)  # as hooks leave it
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = prong.check(model, x)
    assert [each.name for each in result.layers] == ["b"]
    assert kind.strip() in result.layers[0].reason
    with pytest.raises(ValueError, match=rf"b: .*{kind.strip()}.*after whiten"):
        natural.initialize([x], "preserve")
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_a_model_that_differs_from_itself_is_called_so_and_nothing_is_claimed():
    calls = itertools.count()

    class Counting(Net):
        def forward(self, x):
            return super().forward(x) + next(calls)

    model = prong.whiten(Counting("weight"))
    result = prong.check(model, torch.randn(4, 5))
    assert not result.ok
    assert result.layers == ()
    assert "two passes" in result.inconclusive
    assert "nothing is claimed" in str(result)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prong.Reparametrizer(model, optimizer).initialize([torch.randn(16, 5)])


@pytest.mark.parametrize("beside", [None, "weight"])
def test_random_draws_and_counters_in_buffers_are_the_same_in_every_pass(beside):
    class Random(Net):
        def __init__(self):
            super().__init__(beside)
            self.register_buffer("passes", torch.zeros(()))
            self.norm = nn.BatchNorm1d(5)

        def forward(self, x):
            self.passes += 1
            self.extra = None
            x = self.norm(x.mul_(2)) + self.passes + random.random()
            return super().forward(F.dropout(x, 0.5, training=True))

    model, x = prong.whiten(Random()), torch.randn(8, 5)
    model.extra = None
    kept, before = x.clone(), everything(model)
    result = prong.check(model, x)
    assert result.inconclusive == ""
    assert [each.name for each in result.layers] == ([] if beside is None else ["b"])
    assert torch.equal(x, kept)
    assert_unchanged(before, everything(model))


def test_outputs_that_rounding_alone_overturns_are_not_taken_for_a_mistake():
    class Chaotic(Net):
        def forward(self, x):
            return (1e9 * super().forward(x)).sin()

    result = prong.check(prong.whiten(Chaotic()), torch.randn(4, 5))
    assert result.layers == ()
    assert "rounding" in result.inconclusive


@dataclass
class Packed:
    label: str
    value: torch.Tensor


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    "nest",
    [
        lambda y: {"label": "x", "deep": [{"y": (1, y)}]},
        lambda y: Pair(torch.arange(3), {"y": y}),
        lambda y: Packed("x", y),
        lambda y: [None, Packed("x", y.to_sparse())],
    ],
)
def test_outputs_of_any_nesting_are_compared(nest):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 5)

        def forward(self, x):
            return nest(F.linear(x, self.fc.weight))

    assert [e.name for e in prong.check(prong.whiten(Nested()), torch.randn(4, 5)).layers] == ["fc"]


def test_nan_and_infinity_in_the_same_place_do_not_differ():
    class Masked(Net):
        def forward(self, x):
            y = super().forward(x)
            return y.masked_fill(y > y.mean(), float("-inf")), y / (y - y)

    result = prong.check(prong.whiten(Masked().double()), torch.randn(4, 5).double())
    assert result.ok, str(result)


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_a_forward_pass_that_raises_leaves_no_trace(fails_at):
    calls = itertools.count(1)
    model, _ = trained(Net().double(), x := torch.randn(8, 5).double(), "preconditioned")
    before = everything(model)

    def forward(network, batch):
        torch.rand(3)
        if next(calls) == fails_at:
            raise ArithmeticError("no")
        return network(batch)

    with pytest.raises(ArithmeticError):
        prong.check(model, x, forward)
    assert_unchanged(before, everything(model))


def test_statistics_that_are_being_gathered_do_not_count_the_passes():
    model, natural = trained(Net().double(), x := torch.randn(8, 5).double(), "fold")
    counts = [float(layer.moments.count) for layer in natural._layers()]
    assert counts
    assert prong.check(model, x).ok
    assert [float(layer.moments.count) for layer in natural._layers()] == counts


def test_layers_that_share_a_weight_are_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
            self.right.weight = self.left.weight

        def forward(self, x):
            return self.left(x) + self.right(x + 1).tanh()

    assert prong.check(prong.whiten(Tied().double()), torch.randn(6, 4).double()).ok


def test_a_model_without_whitened_layers_is_refused():
    with pytest.raises(ValueError, match=r"call prong\.whiten first"):
        prong.check(nn.Linear(2, 2), torch.randn(3, 2))


def test_compiled_models_are_checked_without_compiling_again():
    model = prong.whiten(Net("weight").double())
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(4, 5).double()
    compiled(x)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert [e.name for e in prong.check(compiled, x).layers] == ["b"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@pytest.mark.parametrize("init", ["balanced", "whitened", "preserve"])
def test_initialize_refuses_a_wrong_model_before_anything_changes(init):
    torch.manual_seed(0)
    model = prong.whiten(Net("weight").double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    natural = prong.Reparametrizer(model, optimizer)
    before = everything(model)
    with pytest.raises(ValueError, match=r"(?s)keep its function.*b: its weight is used beside"):
        natural.initialize(iter([torch.randn(16, 5).double()] * 3), init)
    assert natural.report is None
    assert_unchanged(before, {**everything(model), "random": before["random"]})


def test_initialize_costs_a_few_passes_more_and_gives_the_same_numbers():
    x = [torch.randn(8, 5).double() for _ in range(3)]
    torch.manual_seed(0)
    model = prong.whiten(Net().double())
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(model.training))
    natural = prong.Reparametrizer(model, torch.optim.SGD(model.parameters(), lr=0.1), samples=20)
    natural.initialize(iter(x), "preserve")
    assert calls.count(True) == 3
    assert calls.count(False) <= 4
    assert natural.report.layers["a"].samples == 24


def _one_rank_sees_it(rank, size):
    class Sometimes(Net):
        def forward(self, x):
            self.beside = "weight" if x.sum() > 0 else None
            return super().forward(x)

    torch.manual_seed(0)
    model = prong.whiten(Sometimes().double())
    natural = prong.Reparametrizer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.ones(4, 5).double() * (1 if rank else -1)
    told = []
    try:
        natural.initialize([x])
    except ValueError as error:
        told.append(str(error))

    def forward(network, batch):
        if rank:
            raise ArithmeticError("mine")
        return network(batch)

    natural.forward = forward
    try:
        natural.initialize([-x.abs()])
    except (ArithmeticError, RuntimeError) as error:
        told.append(type(error).__name__ + str(error))
    natural.forward = lambda network, batch: network(batch)
    natural.initialize([-x.abs()])
    return told


def test_all_ranks_refuse_together(tmp_path):
    told = run(tmp_path / "ranks", 2, _one_rank_sees_it)
    assert all("b: its weight is used beside" in each[0] for each in told)
    assert told[0][1] == "RuntimeErrorforward: it raised on another rank"
    assert told[1][1] == "ArithmeticErrormine"

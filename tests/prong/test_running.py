"""Around the method: resume, compile, mixed precision, several ranks, initialisation."""

from __future__ import annotations

import copy
import functools
import json

import pytest
import torch
from exact import EXACT, reparametrizer
from processes import run
from safetensors.torch import load_file, save_file
from small_runs import adam, assert_close, assert_same_bits, folded, sgd, train_step
from torch import nn

import prong


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(100, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ).to(dtype)


def batch(step, size=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(size, 2, 5, 5, generator=generator, dtype=dtype) + 0.5
    return x, torch.randint(0, 3, (size,), generator=generator)


def start(optimizer, **options):
    model = prong.whiten(network())
    made = optimizer(model.parameters())
    options = {**EXACT, "period": 5, "samples": 16, **options}
    return model, made, reparametrizer(model, made, **options)


def train(model, optimizer, natural, first, last):
    for index in range(first, last):
        train_step(model, optimizer, natural, *batch(index))


RESUMED = {
    "fold": {},
    "auto": {"mode": "auto"},
    "spread": {"spread": True},
    "D and two-sided": {"batch_diagonal": True, "two_sided": prong.TwoSided()},
}


@functools.cache
def uninterrupted(optimizer, name):
    """The state after 17 steps at a stretch."""
    whole = start(optimizer, **RESUMED[name])
    whole[2].initialize([batch(99)])
    train(*whole, 0, 17)
    return whole[0].state_dict()


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("stop", [1, 4, 5, 8])
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path, optimizer, stop, name):
    # Steps 4 and 8 lie inside a window of statistics; the state goes through safetensors and JSON.
    options = RESUMED[name]
    model, made, natural = start(optimizer, **options)
    natural.initialize([batch(99)])
    train(model, made, natural, 0, stop)
    state = natural.state_dict()
    save_file(state["tensors"], tmp_path / "natural.safetensors")
    (tmp_path / "natural.json").write_text(json.dumps(state["meta"]))
    saved = copy.deepcopy((model.state_dict(), made.state_dict()))

    model, made, natural = start(optimizer, **options)
    model.load_state_dict(saved[0])
    made.load_state_dict(saved[1])
    natural.load_state_dict(
        {
            "tensors": load_file(tmp_path / "natural.safetensors"),
            "meta": json.loads((tmp_path / "natural.json").read_text()),
        }
    )
    train(model, made, natural, stop, 17)
    assert natural.steps == 17
    assert_same_bits(model.state_dict(), uninterrupted(optimizer, name))


def test_modes_convert_in_mid_run_and_only_sgd_may_be_preconditioned():
    fixed, moved = start(sgd, damping=1.0), start(sgd, damping=1.0, mode="auto")
    for each in (fixed, moved):
        each[2].initialize([batch(99)])
    assert moved[2].mode == "preconditioned"
    for first, mode in ((0, "fold"), (7, "preconditioned"), (12, "activations")):
        train(*fixed, first, first + 5)
        train(*moved, first, first + 5)
        moved[2].convert(mode)
    assert (folded(fixed[0]) - folded(moved[0])).abs().max() < 1e-4
    assert start(adam, mode="auto")[2].mode == "activations"
    with pytest.raises(ValueError, match=r"mode='preconditioned': Adam is not torch\.optim\.SGD"):
        start(adam, mode="preconditioned")
    with pytest.raises(ValueError, match="mode='fast': allowed are auto, fold"):
        start(sgd, mode="fast")


def test_spread_layers_take_turns_each_from_the_steps_just_before():
    model, made, natural = start(sgd, spread=True, period=9, samples=16)
    natural.initialize([batch(99)])
    turns, held = [], []
    for step in range(27):
        x, y = batch(step)
        nn.functional.cross_entropy(model(x), y).backward()
        made.step()
        made.zero_grad()
        before = model.eval()(x).detach()
        report = natural.step()
        if report is not None:
            turns += [(natural.steps, name, layer.samples) for name, layer in report.layers.items()]
            assert (model(x) - before).abs().max() < 1e-4
        model.train()
        held.append(sum(m.moments is not None for m in model.modules() if hasattr(m, "moments")))
    names = {"0": 3, "4": 6, "6": 9}
    samples = {"0": 2 * 8 * 25, "4": 16, "6": 16}  # two batches of eight
    # The first layer's first turn also has the step that told how large a batch is.
    assert turns.pop(0) == (3, "0", 600)
    assert turns == [
        (offset + turn, name, samples[name])
        for offset in (0, 9, 18)
        for name, turn in names.items()
        if offset + turn > 3
    ]
    assert max(held) == 1


def test_a_preconditioned_checkpoint_loads_into_a_freshly_whitened_model():
    model, made, natural = start(sgd, mode="preconditioned")
    natural.initialize([batch(99)])
    train(model, made, natural, 0, 7)
    other = prong.whiten(network())
    other.load_state_dict(model.state_dict())
    assert torch.equal(prong.fold(other)[0].weight, prong.fold(model)[0].weight)
    assert "0.whitener" not in other.state_dict()


def test_a_foreign_state_is_refused():
    _, _, natural = start(sgd)
    with pytest.raises(ValueError, match="version 7"):
        natural.load_state_dict({"meta": {"version": 7}, "tensors": {}})
    state = natural.state_dict()
    state["tensors"]["other.0.moments.count"] = torch.zeros(1)
    with pytest.raises(ValueError, match="belongs to no whitened layer"):
        natural.load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_diagonal": True, "two_sided": prong.TwoSided()},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"batch_diagonal": True}, marks=pytest.mark.slow),
        pytest.param({"two_sided": prong.TwoSided()}, marks=pytest.mark.slow),
        pytest.param({"root": "pca"}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compile_has_no_graph_break_and_two_graphs(options):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    plain, compiled = start(sgd, **options), start(sgd, **options)
    for each in (plain, compiled):
        each[2].initialize([batch(99)])
    run = torch.compile(compiled[0], backend=counter, fullgraph=True)
    train(*plain, 0, 22)
    train(run, *compiled[1:], 0, 22)
    # One graph that takes statistics and one that does not; four reparametrisations add none.
    assert counter.frame_count == 2
    assert compiled[2].report.layers["0"].samples == plain[2].report.layers["0"].samples > 0
    for a, b in zip(plain[0].parameters(), compiled[0].parameters(), strict=True):
        assert (a - b).abs().max() < 1e-4
    assert isinstance(prong.fold(run)[0], nn.Conv2d)


def test_mixed_precision_keeps_statistics_and_fold_in_float32():
    model, _, natural = start(sgd, step_limit=None)
    natural.initialize([batch(99)], "preserve")
    twin = copy.deepcopy(model)
    seen = []
    for net, mixed in ((twin, False), (model, True)):
        natural.gathering.stop()
        for layer in (net[0], net[4], net[6]):
            layer.moments = prong.refresh.collect.new_moments(layer)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            output = net(batch(0)[0])
        seen.append((output.float(), net[0].moments, net[4].moments))
        assert output.dtype == (torch.bfloat16 if mixed else torch.float32)
    # The first layer's input is the same float32 batch, so its statistics are equal to the bit.
    assert torch.equal(seen[0][1].scatter, seen[1][1].scatter)
    assert seen[1][2].scatter.dtype == torch.float32
    # bfloat16 keeps 8 bits; four roundings on the way.
    assert (seen[1][0] - seen[0][0]).abs().max() < 4 * 2**-8 * seen[0][0].abs().max() * 4
    with torch.autocast("cpu", torch.bfloat16):
        weight, _ = model[4].fold()
    assert torch.equal(weight, twin[4].fold()[0])


def test_a_bfloat16_model_trains_with_wide_phi_within_a_bound():
    model = prong.whiten(network()).to(torch.bfloat16)
    optimizer = sgd(model.parameters())
    natural = reparametrizer(model, optimizer, period=4, samples=16, **EXACT)
    x, y = batch(0)
    natural.initialize([x.bfloat16()], "preserve")
    for step in range(8):
        x, y = batch(step)
        nn.functional.cross_entropy(model(x.bfloat16()).float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = model.eval()(x.bfloat16()).float()
        model.train()
        report = natural.step()
        after = model.eval()(x.bfloat16()).float()
        model.train()
        # V itself is rounded to 8 bits, and U multiplies that by up to cond(U).
        worst = max(
            float(torch.linalg.cond(layer.whitener).max())
            for layer in (model[0], model[4], model[6])
        )
        assert (after - before).abs().max() <= 2**-8 * worst * before.abs().max()
    assert report.layers["4"].updated
    assert model[4].whitener.dtype == torch.float32


def test_whitened_initialisation_keeps_the_numbers():
    drawn = network()
    model, _, natural = start(sgd)
    natural.initialize([batch(99, 64)], "whitened")
    for index in (0, 4, 6):
        assert torch.equal(model[index].weight, drawn[index].weight)


def test_initialisation_goes_layer_by_layer_and_leaves_no_trace():
    model, _, natural = start(sgd, samples=64, damping=1e-6)
    running = model[1].running_mean.clone()
    model.eval()
    x, y = batch(99, 64)
    natural.initialize([(x, y)], "whitened")
    assert torch.equal(model[1].running_mean, running)
    assert not model.training
    # With V's numbers kept, the second layer's input depends on the first layer's Φ: what is white
    # after the last layer's turn shows that each was measured behind the ones before.
    measured = prong.whiteness(model, [(x, y)], samples=64)
    assert float(measured["6"].white_spectrum.max()) < 1 + 1e-3


def test_statistics_from_a_loader_use_the_present_parameters():
    model = prong.whiten(network(torch.float64))
    optimizer = sgd(model.parameters())
    loader = [batch(7, 16, torch.float64), batch(8, 16, torch.float64)]
    natural = reparametrizer(model, optimizer, period=3, samples=20, batches=loader, **EXACT)
    for index in range(3):
        report = train_step(model, optimizer, natural, *batch(index, dtype=torch.float64))
    assert report.layers["4"].samples == 32
    model.train()
    hidden = torch.cat([model[:4](x) for x, _ in loader])
    assert (model[4].mean[0] - hidden.mean(0)).abs().max() < 1e-12


def test_detach_lets_go():
    model, optimizer, natural = start(sgd)
    natural.detach()
    train(model, optimizer, natural, 0, 1)
    assert natural.control.scales == {}


def _path(rank, size, options):
    """The state after eight steps, of which rank and size take their part."""
    model = prong.whiten(network(torch.float64))
    parallel = nn.parallel.DistributedDataParallel(model) if size > 1 else model
    optimizer = sgd(model.parameters())
    init = "whitened" if "leading" in options else "preserve"
    natural = reparametrizer(parallel, optimizer, period=3, samples=16, **{**EXACT, **options})
    share = slice(rank * 8 // size, (rank + 1) * 8 // size)
    model[1].eval()  # batch statistics would differ between world sizes, whatever the method
    natural.initialize([batch(99, dtype=torch.float64)[0][share]], init)
    for index in range(8):
        x, y = batch(index, dtype=torch.float64)
        model.train()
        model[1].eval()
        train_step(parallel, optimizer, natural, x[share], y[share])
    assert natural.report.layers["0"].examples == 16
    return model.state_dict()


# Options, and whether one process takes the same path: D depends on the basis, and 16 samples leave
# the basis of most of 100 features open.
OF_RANKS = {
    "two-sided": ({"two_sided": prong.TwoSided()}, True),
    "batch diagonal": ({"two_sided": prong.TwoSided(), "batch_diagonal": True}, False),
    "leading": ({"mode": "preconditioned", "leading": 1.0, "early": False}, True),
}


def _paths(rank, size):
    return {name: _path(rank, size, options) for name, (options, _) in OF_RANKS.items()}


@pytest.mark.slow
def test_ranks_hold_the_same_bytes_and_one_answer(tmp_path):
    (alone,) = run(tmp_path / "1", 1, _paths)
    first, second = run(tmp_path / "2", 2, _paths)
    for name, (_, comparable) in OF_RANKS.items():
        assert_same_bits(second[name], first[name], name)
        if comparable:
            assert_close(first[name], alone[name], 1e-10, name)

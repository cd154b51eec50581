"""Statistics beside the forward pass are those of the forward pass, to the bit."""

from __future__ import annotations

import contextlib
import copy
import io

import pytest
import torch
from devices import BOTH, CUDA
from exact import EXACT, reparametrizer
from torch import nn
from torch.utils.checkpoint import checkpoint

import prong
from prong.extensions.side_stream import SideStream
from prong.statistics.moments import Moments

LONG = 20_000_000  # cycles of a GPU: ten milliseconds, longer than everything that is queued here


class Network(nn.Module):
    """Every kind of samples: strided pixels, rows, tokens; one block may be run twice."""

    def __init__(self):
        super().__init__()
        self.pixels = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.ReLU()
        )
        self.rows = nn.Sequential(nn.Linear(4 * 169, 24), nn.Tanh(), nn.Linear(24, 5))
        self.twice = False

    def forward(self, x):
        hidden = self.pixels(x).flatten(1)
        if self.twice:
            return checkpoint(self.rows, hidden, use_reentrant=False)
        return self.rows(hidden)


def batch(step, device):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3, 12, 12, generator=generator) + 1
    return x.to(device), torch.randint(0, 5, (8,), generator=generator).to(device)


def late(natural):
    """Keep the current and, if there is one, the side stream busy for a while."""
    if natural.units[0].weight.is_cuda:
        torch.cuda._sleep(LONG)
        for stream in natural._stream._streams.values() if natural._stream else ():
            with torch.cuda.stream(stream):
                torch.cuda._sleep(LONG)


def trained(device, side_stream, *, steps=9, mixed=False, twice=False, **options):
    """All that is left after some steps, one of them in mid-window: Φ, weights, statistics."""
    torch.manual_seed(0)
    model = prong.whiten(Network().to(device))
    model.twice = twice
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    options = {**EXACT, "period": 4, "samples": 16, "side_stream": side_stream, **options}
    natural = reparametrizer(model, optimizer, **options)
    natural.initialize([batch(99, device)[0]])
    states = []
    for step in range(steps):
        x, y = batch(step, device)
        late(natural)
        with torch.autocast(device, torch.bfloat16) if mixed else contextlib.nullcontext():
            loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        x.fill_(torch.nan)  # a loop may use the memory of a batch again
        states.append(natural.state_dict()["tensors"])
        optimizer.step()
        optimizer.zero_grad()
        natural.step()
    assert any(states)
    assert all(layer.updated for layer in natural.report.layers.values())
    states.append(dict(model.state_dict()))
    return natural, states


@pytest.mark.parametrize("device", BOTH)
@pytest.mark.parametrize(
    "options",
    [
        {"two_sided": prong.TwoSided()},
        {"mode": "preconditioned", "leading": 0.5, "spread": True},
        {"mode": "activations", "batch_diagonal": True},
        {"mixed": True},
        {"twice": True},
    ],
    ids=["two sides", "preconditioned", "activations", "mixed", "checkpointed"],
)
def test_a_run_is_the_same_to_the_bit(device, options):
    # Without a side stream, too, some of cuDNN's gradients are sums in any order.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        plain, expected = trained(device, False, **options)
        beside, found = trained(device, True, **options)
    assert plain._stream is None
    assert len(beside._stream._streams) == (device == "cuda")
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("device", BOTH)
def test_whoever_reads_moments_waits_for_them(device):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 300, 40, generator=generator).to(device)
    place = {"dtype": torch.float32, "device": rows.device}
    expected = Moments(1, 40, **place)
    expected.add(rows, 300)
    expected.add(rows, 300)

    def gathered():
        side, moments, source = SideStream(), Moments(1, 40, **place), torch.empty_like(rows)
        for _ in range(2):
            if device == "cuda":
                torch.cuda._sleep(LONG)
            source.copy_(rows)
            side.add(moments, source, 300, source)
            source.fill_(torch.nan)
            if device == "cuda":
                # What follows on the side stream is late also where the current one is not.
                with torch.cuda.stream(side._streams[rows.device]):
                    torch.cuda._sleep(LONG)
        return moments

    def merged():
        into = Moments(1, 40, **place)
        into.merge(gathered())
        return into

    def moved():
        moments = gathered()
        moments.to(torch.device("cpu"))
        return moments

    def loaded():
        moments = gathered()
        moments.load(expected.tensors())
        return moments

    def grown():
        moments, whole = gathered(), Moments(1, 40, **place)
        moments.add(rows, 300)
        for _ in range(3):
            whole.add(rows, 300)
        assert torch.equal(moments.scatter, whole.scatter)
        return expected

    assert torch.equal(gathered().covariance(), expected.covariance())
    assert torch.equal(gathered().second_moment(rows[:, 0]), expected.second_moment(rows[:, 0]))
    assert torch.equal(gathered().widened().scatter, expected.widened().scatter)
    for read in (merged, moved, loaded, grown, lambda: copy.deepcopy(gathered())):
        found = read()
        for name, value in expected.tensors().items():
            other = getattr(found, name).to(device)
            # A merge into nothing forms another product.
            exact = torch.equal if read is not merged else torch.allclose
            if read is merged and name == "scatter":
                value, other = value.triu(), other.triu()
            assert exact(other, value), (read, name)


def test_on_the_cpu_and_compiled_the_option_makes_no_stream_and_no_graph_more():
    from torch._dynamo.testing import CompileCounterWithBackend

    frames = []
    for on in (False, True):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        torch.manual_seed(0)
        model = prong.whiten(Network())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        natural = reparametrizer(model, optimizer, period=3, samples=8, side_stream=on, **EXACT)
        run = torch.compile(model, backend=counter, fullgraph=True)
        for step in range(7):
            x, y = batch(step, "cpu")
            nn.functional.cross_entropy(run(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            natural.step()
        assert natural.report.layers["rows.0"].updated
        assert natural._stream is None or not natural._stream._streams
        frames.append((counter.frame_count, model.state_dict()))
    assert frames[0][0] == frames[1][0] == 2
    assert all(torch.equal(v, frames[1][1][k]) for k, v in frames[0][1].items())


@pytest.mark.parametrize("device", BOTH)
def test_a_model_with_a_side_stream_can_be_copied_stored_and_let_go(device):
    natural, _ = trained(device, True, steps=2)
    model = natural.model
    model(batch(0, device)[0])
    twin = copy.deepcopy(model)
    for name, value in model.rows[0].moments.tensors().items():
        assert torch.equal(getattr(twin.rows[0].moments, name), value), name
    twin(batch(1, device)[0])
    torch.save(model, io.BytesIO())
    natural.detach()
    assert model.rows[0].side_stream is None
    assert type(prong.fold(twin).rows[0]) is nn.Linear


@pytest.mark.parametrize("device", [CUDA])
def test_a_captured_graph_takes_statistics_on_its_own_stream(device):
    torch.manual_seed(0)
    model = prong.whiten(Network().to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    natural = reparametrizer(model, optimizer, samples=64, side_stream=True)
    x, _ = batch(0, device)
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm), torch.no_grad():
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        model(x)
    for _ in range(4):
        graph.replay()
    moments = natural.units[0].moments()
    assert float(moments.examples) == 8 * (3 + 4)
    assert float(moments.rejected) == 0


@pytest.mark.parametrize("device", [CUDA])
def test_each_device_has_a_stream(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    side = SideStream()
    for index in range(2):
        place = torch.device(device, index)
        rows = torch.randn(1, 64, 8, device=place)
        moments = Moments(1, 8, dtype=rows.dtype, device=place)
        side.add(moments, rows, 64, rows)
        assert float(moments.widened().count) == 64
    assert [place.index for place in side._streams] == [0, 1]

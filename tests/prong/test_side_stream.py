"""Statistics beside the forward pass are those of the forward pass, to the bit.

A CPU has no streams, and `SideStream` then adds every batch at once. `LateStream` stands in for it
there: it adds a batch only when somebody waits for it, which is the latest that a device may do it.
A reader that does not wait finds moments without the last batches.
"""

from __future__ import annotations

import contextlib
import copy
import io

import pytest
import torch
from devices import BOTH, CUDA
from exact import EXACT, reparametrizer
from small_runs import assert_same_bits
from torch import nn
from torch.utils.checkpoint import checkpoint

import prong
from prong.extensions.side_stream import SideStream, _share_memory
from prong.statistics.moments import Moments

LONG = 20_000_000  # cycles of a GPU: ten milliseconds, longer than everything that is queued here


class LateStream:
    """Adds batches when they are waited for, in their order; copied or stored it holds none."""

    def __init__(self):
        self.waiting, self.added, self.adding = [], 0, False

    def __reduce__(self):
        return LateStream, ()

    def add(self, moments, samples, examples, source):
        moments.beside = self
        self.waiting.append((moments, samples.clone(), examples))

    def join(self, device=None):
        if self.adding:  # `Moments.add` waits for what comes before it: that has been added
            return
        self.adding = True
        try:
            while self.waiting:
                moments, samples, examples = self.waiting.pop(0)
                moments.add(samples, examples)
                self.added += 1
        finally:
            self.adding = False


def stream_of(device):
    return SideStream() if device == "cuda" else LateStream()


class Network(nn.Module):
    """Every kind of samples: strided pixels, rows, tokens; one block may be run twice."""

    def __init__(self):
        super().__init__()
        self.pixels = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.ReLU()
        )
        self.rows = nn.Sequential(nn.Linear(4 * 49, 24), nn.Tanh(), nn.Linear(24, 5))
        self.twice = False

    def forward(self, x):
        hidden = self.pixels(x).flatten(1)
        if self.twice:
            return checkpoint(self.rows, hidden, use_reentrant=False)
        return self.rows(hidden)


def batch(step, device):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3, 6, 6, generator=generator) + 1
    return x.to(device), torch.randint(0, 5, (8,), generator=generator).to(device)


def late(natural):
    """Keep the current and, if there is one, the side stream busy for a while."""
    if natural.units[0].weight.is_cuda:
        torch.cuda._sleep(LONG)
        for stream in natural._stream._streams.values() if natural._stream else ():
            with torch.cuda.stream(stream):
                torch.cuda._sleep(LONG)


def trained(device, stream, *, steps=9, mixed=False, twice=False, **options):
    """All that is left after some steps, one of them in mid-window: Φ, weights, statistics."""
    torch.manual_seed(0)
    model = prong.whiten(Network().to(device))
    model.twice = twice
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    options = {**EXACT, "period": 4, "samples": 16, "positions": 16, **options}
    natural = reparametrizer(model, optimizer, **options)
    natural.gather_on(stream)
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


def equal(one, other):
    for expected, found in zip(one, other, strict=True):
        assert_same_bits(found, expected)


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
    stream = stream_of(device)
    # Without a side stream, too, some of cuDNN's gradients are sums in any order.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        _, expected = trained(device, None, **options)
        _, found = trained(device, stream, **options)
    if device == "cuda":
        assert len(stream._streams) == 1
    else:
        # Four layers, each with a window of two steps at least before a reparametrisation.
        assert stream.added >= 4 * 2
        assert not stream.waiting
    equal(expected, found)


def test_a_reader_that_does_not_wait_would_be_noticed():
    """What the test above can hold on a CPU: batches are missing until somebody waits for them."""
    natural, _ = trained("cpu", stream := LateStream(), steps=2)
    moments = natural.model.rows[0].moments
    natural.model(batch(0, "cpu")[0])
    assert len(stream.waiting) == 4
    before = float(moments.count)
    assert float(natural.state_dict()["tensors"]["rows.0.0.moments.count"]) == before + 8
    assert float(moments.count) == before + 8
    assert not stream.waiting


def test_without_streams_batches_are_added_at_once(monkeypatch):
    """On a CPU the option takes the path of `SideStream.add` and changes nothing."""
    added = []
    real = SideStream.add

    def counting(stream, moments, samples, examples, source):
        before = float(moments.count)
        real(stream, moments, samples, examples, source)
        added.append(float(moments.count) - before == samples.shape[1])
        assert moments.beside is None

    monkeypatch.setattr(SideStream, "add", counting)
    _, expected = trained("cpu", None)
    assert not added
    _, found = trained("cpu", stream := SideStream())
    equal(expected, found)
    assert len(added) >= 4 * 2
    assert all(added)
    assert stream._streams == {}


def test_a_view_of_the_source_is_copied_and_a_tensor_of_its_own_is_not():
    source = torch.randn(4, 6)
    assert _share_memory(source.reshape(1, 4, 6)[:, ::2], source)
    assert not _share_memory(source.double(), source)
    assert not _share_memory(source.clone(), source)


@pytest.mark.parametrize("device", BOTH)
def test_readers_of_moments_wait_for_them(device):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 300, 40, generator=generator).to(device)
    place = {"dtype": torch.float32, "device": rows.device}
    expected = Moments(1, 40, **place)
    expected.add(rows, 300)
    expected.add(rows, 300)

    def gathered():
        side, moments, source = stream_of(device), Moments(1, 40, **place), torch.empty_like(rows)
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


@pytest.mark.parametrize("device", BOTH)
def test_a_model_with_a_side_stream_can_be_copied_stored_and_let_go(device):
    natural, _ = trained(device, stream_of(device), steps=2)
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
    with torch.cuda.stream(warm):
        for _ in range(3):
            model(x)  # with gradients: other passes do not count
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
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

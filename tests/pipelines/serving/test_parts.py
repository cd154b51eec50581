"""Parts of the server on their own: batches, bodies, tensors, compression."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from questions import coded
from served import loaded

from pipelines.serving.http import batching, bodies, recording
from pipelines.serving.http.batching import Batcher
from pipelines.serving.http.live import Live, Loaded
from pipelines.serving.http.metrics import Metrics
from pipelines.serving.http.recording import Recorder
from pipelines.serving.http.refusal import Refused
from pipelines.serving.http.settings import ServeSettings
from pipelines.serving.http.tensors import Tensor, from_bytes, from_json, to_bytes


def batched(
    act: Callable[[Batcher], Any], metrics: Metrics | None = None, **chosen: Any
) -> Batcher:
    """Run something with a batcher at work; return the batcher."""
    live = Live("digits")
    metrics = metrics or Metrics(live)
    batcher = Batcher(ServeSettings(**chosen), metrics, Recorder(live, None, metrics, None))

    async def run() -> None:
        batcher.start()
        await act(batcher)
        await batcher.close()

    asyncio.run(run())
    return batcher


def ask(batcher: Batcher, version: Loaded, inputs: np.ndarray) -> Any:
    return batcher.ask(version, "r", inputs, time.perf_counter())


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 4, 4), dtype=np.uint8)


def test_short_batches_run_in_the_loop_and_join_what_came_together(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_AT_ONCE", 60.0)  # however slow this machine is
    version = loaded(models["classifier"])

    async def act(batcher: Batcher) -> None:
        await ask(batcher, version, images(4))
        assert batcher._handed == 1  # it is not known how long it takes
        for at in range(1, 11):
            asked = [ask(batcher, version, images(1, seed)) for seed in range(8)]
            for seed, (raw, _) in enumerate(await asyncio.gather(*asked)):
                np.testing.assert_allclose(raw, version.model.raw(images(1, seed)), rtol=1e-5)
            (totals,) = batcher.totals.values()
            assert totals.calls == 1 + at
        assert batcher._handed == 1
        # A request of more than a batch has its turns in the thread.
        many = images(33)
        raw, _ = await ask(batcher, version, many)
        np.testing.assert_allclose(raw, version.model.raw(many), rtol=1e-5)
        assert batcher._handed == 2
        # A model that turns out slow goes back to the thread.
        monkeypatch.setattr(batching, "_AT_ONCE", 0.0)
        for _ in range(6):
            await ask(batcher, version, images(1))
        assert batcher._handed > 4

    assert batched(act, max_batch=8).waiting == 0


def test_versions_are_never_joined(models: dict[str, Path]) -> None:
    versions = [loaded(models["classifier"], number) for number in (3, 4)]

    async def act(batcher: Batcher) -> None:
        for _ in range(20):
            asked = [ask(batcher, versions[at % 2], images(2, at)) for at in range(10)]
            for at, (raw, _) in enumerate(await asyncio.gather(*asked)):
                np.testing.assert_allclose(raw, versions[0].model.raw(images(2, at)), rtol=1e-5)

    totals = batched(act).totals
    assert {version: one.examples for version, one in totals.items()} == {3: 200, 4: 200}


def test_a_large_request_lets_others_have_their_turn(models: dict[str, Path]) -> None:
    version = loaded(models["classifier"])

    async def act(batcher: Batcher) -> None:
        await ask(batcher, version, images(1))
        large = asyncio.ensure_future(ask(batcher, version, images(1_000)))
        await asyncio.sleep(0)
        await ask(batcher, version, images(1))
        assert not large.done()
        raw, _ = await large
        assert len(raw) == 1_000

    batched(act, max_batch=1)


def test_what_waits_at_the_end_is_answered(models: dict[str, Path]) -> None:
    version = loaded(models["classifier"])
    found: list[Any] = []

    async def act(batcher: Batcher) -> None:
        asked = [asyncio.ensure_future(ask(batcher, version, images(3))) for _ in range(5)]
        await asyncio.sleep(0)
        await batcher.close()
        found.extend(await asyncio.gather(*asked))
        with pytest.raises(Refused, match="not started"):
            await ask(batcher, version, images(1))

    batched(act, batch_delay_ms=1000)
    assert len(found) == 5


def sent(*messages: dict[str, Any], pause: float = 0.0) -> Any:
    """A client's messages, one after the other."""
    left = [*messages]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return left.pop(0)

    return receive


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_bodies_take_memory_as_they_come_and_no_more() -> None:
    memory = bodies.BodyMemory(10)
    two = sent(part(b"abc"), part(b"def", more=False))
    assert asyncio.run(bodies.read(two, 6, memory)) == b"abcdef"
    with pytest.raises(Refused, match="too much memory") as raised:
        asyncio.run(bodies.read(sent(part(b"abcde", more=False)), 9, memory))
    assert raised.value.status == 429
    with pytest.raises(Refused, match="too much memory"):
        asyncio.run(bodies.read(sent(part(b"abc"), part(b"de")), 9, memory))
    with pytest.raises(Refused, match="more than 3 bytes"):
        asyncio.run(bodies.read(sent(part(b"abc"), part(b"d")), 3, memory))
    with pytest.raises(bodies.Gone):
        asyncio.run(bodies.read(sent(part(b"abc"), {"type": "http.disconnect"}), 3, memory))
    memory.give(6)
    memory.take(10)  # all that was refused was given back


def test_slow_bodies_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SECONDS", 0.05)
    with pytest.raises(Refused) as raised:
        asyncio.run(bodies.read(sent(part(b"a"), part(b"b"), pause=0.04), 9, bodies.BodyMemory(9)))
    assert raised.value.status == 408


@pytest.mark.parametrize(
    ("accepted", "size", "coding"),
    [
        (b"gzip", 5000, b"gzip"),
        (b"deflate", 5000, b"deflate"),
        (b"br;q=1, GZIP;q=0.5", 5000, b"gzip"),
        (b"gzip;q=0, deflate", 5000, b"deflate"),
        (b"gzip; q=0.0", 5000, None),
        (b"identity", 5000, None),
        (b"", 5000, None),
        (b"gzip", 100, None),
    ],
)
def test_answers_are_packed_as_the_client_can_read(
    accepted: bytes, size: int, coding: bytes | None
) -> None:
    assert bodies.coding_for(accepted, size) == coding


DTYPES = st.sampled_from(["u1", "u2", "f8"])


@settings(max_examples=30)
@given(st.data(), DTYPES)
def test_numbers_travel_unchanged(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=4, max_side=4))
    elements = {"allow_nan": False, "allow_infinity": False} if dtype == "f8" else None
    array = data.draw(arrays.arrays(dtype, shape, elements=elements))
    name = {"u1": "UINT8", "u2": "UINT16", "f8": "FP64"}[dtype]
    tensor = Tensor("x", name, shape[1:])
    for found in (
        from_bytes(tensor, len(array), memoryview(to_bytes(array))),
        from_json(tensor, len(array), array.tolist()),
        from_json(tensor, len(array), array.ravel().tolist()),
    ):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@settings(max_examples=30)
@given(st.lists(st.text(), min_size=1, max_size=5))
def test_texts_travel_unchanged(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    array = np.empty((len(texts), 1), object)
    array[:, 0] = texts
    tensor = Tensor("x", "BYTES", (1,))
    assert to_bytes(array) == coded(array)
    for found in (
        from_bytes(tensor, len(texts), memoryview(to_bytes(array))),
        from_json(tensor, len(texts), array.tolist()),
    ):
        assert found.tolist() == array.tolist()


def test_a_busy_server_scores_some_examples_and_an_idle_one_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(recording.time, "monotonic", lambda: clock[0])
    budget = recording.ScoreBudget(8.0)
    assert [budget.take(1) for _ in range(10)] == [True] * 8 + [False] * 2
    clock[0] += 0.125
    assert [budget.take(1), budget.take(1)] == [True, False]
    clock[0] += 60.0
    assert budget.take(40)  # overdrawn by 32: nothing for the next four seconds
    clock[0] += 4.0
    assert not budget.take(1)
    clock[0] += 0.25
    assert budget.take(1)
    slow = recording.ScoreBudget(0.5)
    for _ in range(5):
        assert slow.take(1)
        clock[0] += 2.0
    assert not recording.ScoreBudget(0.0).take(1)

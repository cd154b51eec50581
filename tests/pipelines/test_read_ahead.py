"""Work that is done ahead: in order, bounded, and over when it is no longer wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pipelines.core.waiting import wait_until
from pipelines.serving.batch.read_ahead import read_ahead


def test_results_come_in_order_whatever_takes_long() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    found = read_ahead(iter(range(200)), work, weight=lambda _: 1, workers=4, depth=9, most=10**9)
    assert list(found) == [item * item for item in range(200)]


@pytest.mark.parametrize(("depth", "most", "ahead"), [(5, 10**9, 5), (50, 3, 3), (50, 0, 1)])
def test_no_more_is_drawn_than_places_or_memory_allow(depth: int, most: int, ahead: int) -> None:
    drawn = 0
    go = threading.Event()

    def items() -> Iterator[int]:
        nonlocal drawn
        for item in range(40):
            drawn += 1
            yield item

    def work(item: int) -> int:
        assert go.wait(20)
        return item

    found = read_ahead(items(), work, weight=lambda _: 1, workers=2, depth=depth, most=most)
    first = threading.Thread(target=lambda: next(found))
    first.start()
    assert wait_until(lambda: drawn > ahead, 5, pause=0.01)
    time.sleep(0.05)
    assert drawn == ahead + 1  # the one that waits for its place
    go.set()
    first.join()
    assert list(found) == list(range(1, 40))


@pytest.mark.parametrize("where", ["items", "work"])
def test_an_error_comes_at_its_place_and_the_threads_end(where: str) -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            for item in range(100):
                if where == "items" and item == 7:
                    raise KeyError(item)
                yield item
        finally:
            closed.set()

    def work(item: int) -> int:
        if where == "work" and item == 7:
            raise KeyError(item)
        return item

    before = threading.active_count()
    found = read_ahead(items(), work, weight=lambda _: 1, workers=3, depth=4, most=100)
    seen = []
    with pytest.raises(KeyError):
        for one in found:
            seen.append(one)  # what came before the error counts
    assert seen == list(range(7))
    assert closed.is_set()
    assert threading.active_count() == before


def test_it_ends_when_no_more_is_wanted() -> None:
    before = threading.active_count()
    found = read_ahead(
        iter(range(10**6)), lambda item: item, weight=lambda _: 1, workers=3, depth=4, most=2
    )
    assert next(found) == 0
    found.close()
    assert threading.active_count() == before

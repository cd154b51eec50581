"""Work on items that is done ahead by threads, in order, and never far ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    items: Iterator[Item],
    work: Callable[[Item], Result],
    *,
    weight: Callable[[Item], int],
    workers: int,
    depth: int,
    most: int,
) -> Generator[Result, None, None]:
    """Yield the result of every item, in order, while threads work on those that follow.

    Args:
        items: Drawn by one thread, which closes it at the end if it is a generator.
        work: Called by several threads at once.
        weight: How much memory an item takes, bytes.
        workers: Number of threads that work.
        depth: Most items, drawn and not yet yielded.
        most: Memory that items may take until they were worked on, bytes; one item may take more.

    Raises:
        Exception: What `items` or `work` raised, at the item's place.
    """
    ahead = _Ahead(items, work, weight, ThreadPoolExecutor(workers, "decode"), depth, most)
    try:
        yield from ahead.results()
    finally:
        ahead.close()


class _Ahead(Generic[Item, Result]):
    def __init__(
        self,
        items: Iterator[Item],
        work: Callable[[Item], Result],
        weight: Callable[[Item], int],
        pool: ThreadPoolExecutor,
        depth: int,
        most: int,
    ) -> None:
        self._items, self._work, self._weight = items, work, weight
        self._pool, self._most = pool, most
        self._places = threading.Semaphore(depth)
        self._memory = threading.Condition()
        self._taken, self._closed = 0, False
        self._futures: SimpleQueue[Future[Result] | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="read", daemon=True)
        self._reader.start()

    def results(self) -> Iterator[Result]:
        while (future := self._futures.get()) is not None:
            found = future.result()
            self._places.release()
            yield found

    def close(self) -> None:
        """End the threads; what was not worked on is dropped."""
        with self._memory:
            self._closed = True
            self._memory.notify_all()
        self._places.release()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._reader.join()
        self._pool.shutdown(cancel_futures=True)

    def _read(self) -> None:
        try:
            for item in self._items:
                self._places.acquire()
                weight = self._weight(item)
                if not self._admitted(weight):
                    return
                self._futures.put(self._pool.submit(self._done, item, weight))
            self._futures.put(None)
        except BaseException as error:  # whoever waits for the results is told
            failed: Future[Result] = Future()
            failed.set_exception(error)
            self._futures.put(failed)
        finally:
            if hasattr(self._items, "close"):
                self._items.close()

    def _admitted(self, weight: int) -> bool:
        """Wait until there is memory for an item; say whether it is still wanted."""
        with self._memory:
            while not self._closed and self._taken and self._taken + weight > self._most:
                self._memory.wait()
            self._taken += weight
            return not self._closed

    def _done(self, item: Item, weight: int) -> Result:
        try:
            return self._work(item)
        finally:
            with self._memory:
                self._taken -= weight
                self._memory.notify_all()

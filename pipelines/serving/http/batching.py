"""Requests that arrive together are answered together; one call of the model runs at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

from numpy.typing import NDArray

from pipelines.serving.http.calling import Arrays, ModelCalls, WaitingRequest
from pipelines.serving.http.live import Loaded
from pipelines.serving.http.metrics import Metrics
from pipelines.serving.http.recording import Recorder
from pipelines.serving.http.refusal import busy, unready
from pipelines.serving.http.settings import ServeSettings
from pipelines.serving.http.totals import Totals

_AT_ONCE = 0.0005
"""Seconds of a batch that the loop itself runs: less than a thread and back costs under load."""


class Batcher:
    """A bounded queue, and the thread behind it that asks the model.

    Requests of one version that wait at the same time share a call. While a call runs the next
    batch gathers. A request of more than a batch is answered in parts, between which others have
    their turn. Batches of a model that needs far less than a millisecond are run by the loop, where
    the thread has nothing to do: all requests that it has just read are joined.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics, recorder: Recorder) -> None:
        self._most, self._longest = settings.max_batch, settings.queue
        self._delay = settings.batch_delay_ms / 1000
        self._calls = ModelCalls(settings.max_batch, metrics, recorder)
        self._queue: SimpleQueue[WaitingRequest | None] = SimpleQueue()
        self._asked = self._taken = 0
        self._handed = self._back = 0  # requests that the thread was given, and those it has ended
        self._new: list[WaitingRequest] = []  # that the loop has read and nobody has taken
        self._timed = 0  # the version whose batches were timed last
        self._short_count = 0  # examples that the loop may run at once
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def totals(self) -> dict[int, Totals]:
        """What each version that was asked has answered."""
        return self._calls.totals

    @property
    def waiting(self) -> int:
        """Requests that wait for their first call of the model."""
        return self._asked - self._taken

    def start(self) -> None:
        """Start the thread; called in the running loop that will ask."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Answer what waits, and end the thread."""
        thread, self._thread = self._thread, None  # nothing new is taken from here on
        if thread is not None:
            self._dispatch()
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    def full(self) -> bool:
        """Say whether no further request may wait."""
        return self.waiting >= self._longest

    async def ask(
        self, loaded: Loaded, request: str, inputs: NDArray[Any], arrived: float
    ) -> Arrays:
        """Return raw outputs and answers of some examples.

        Args:
            loaded: The version that is asked.
            request: Id of the request.
            inputs: As the data hold them, [n, *input_shape], n ≥ 1.
            arrived: `time.perf_counter()` when the request came.

        Raises:
            Refused: 429 if the queue is full; 422 if the model cannot answer this request; 503 if
                it can answer none.
        """
        if self._loop is None or self._thread is None:
            raise unready("the server is not started")
        if self.full():
            raise busy(f"{self._longest} requests wait already; try again later")
        job = WaitingRequest(loaded, request, inputs, arrived, self._loop.create_future())
        self._asked += 1
        self._new.append(job)
        if len(self._new) == 1:
            self._loop.call_soon(self._dispatch)  # after all requests that were read with it
        return await job.future

    def _dispatch(self) -> None:
        """Run what is new at once, or hand it to the thread."""
        jobs, self._new = self._new, []
        if jobs and self._short(jobs):
            self._taken += len(jobs)
            for job in self._run(jobs):
                job.resolve()
            return
        self._handed += len(jobs)
        for job in jobs:
            self._queue.put(job)

    def _short(self, jobs: Sequence[WaitingRequest]) -> bool:
        """Say whether requests are one batch that the loop may run."""
        first = jobs[0].loaded
        if self._delay or self._handed != self._back or first.version != self._timed:
            return False
        count = sum(job.left for job in jobs)
        return count <= self._short_count and all(job.loaded is first for job in jobs)

    def _run(self, batch: Sequence[WaitingRequest]) -> list[WaitingRequest]:
        """Run a batch, and learn from the time it took; return the requests that have ended."""
        count = sum(min(job.left, self._most) for job in batch)
        began = time.perf_counter()
        done = self._calls.run(batch)
        seconds = time.perf_counter() - began
        if batch[0].loaded.version != self._timed:
            self._timed, self._short_count = batch[0].loaded.version, 0
        if seconds > _AT_ONCE:
            self._short_count = min(self._short_count, count // 2)
        elif seconds < _AT_ONCE / 2:
            self._short_count = min(max(self._short_count, 2 * count), self._most)
        return done

    def _work(self) -> None:
        assert self._loop is not None
        waiting: deque[WaitingRequest] = deque()
        ends = False
        while not ends or waiting:
            ends = self._gather(waiting, ends)
            if not waiting:
                continue
            batch = self._next(waiting)
            done = self._run(batch)
            waiting.extend(job for job in batch if not job.ended)
            self._back += len(done)  # before the loop goes on, which then sees an idle thread
            self._loop.call_soon_threadsafe(_resolve, done)
            del batch, done  # a version that was swapped out is freed at once

    def _gather(self, waiting: deque[WaitingRequest], ends: bool) -> bool:
        """Take what the queue holds, or comes in time to join a batch; True: no more will come."""
        count = sum(job.left for job in waiting)
        while not ends:
            try:
                if not waiting:
                    job = self._queue.get()
                elif count < self._most and (left := self._delay - waiting[0].age) > 0:
                    job = self._queue.get(timeout=left)
                else:
                    job = self._queue.get_nowait()
            except Empty:
                break
            if job is None:
                return True
            waiting.append(job)
            count += job.left
        return ends

    def _next(self, waiting: deque[WaitingRequest]) -> list[WaitingRequest]:
        """Take requests for one call: of one version, in their order, as many as fit."""
        first = waiting.popleft()
        batch, room = [first], self._most - first.left
        while waiting and waiting[0].loaded is first.loaded and waiting[0].left <= room:
            job = waiting.popleft()
            batch.append(job)
            room -= job.left
        self._taken += sum(not job.done for job in batch)
        return batch


def _resolve(done: Sequence[WaitingRequest]) -> None:
    for job in done:
        job.resolve()

"""Requests that arrive together are answered together, by one thread that asks the model."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.serving.http.live import Loaded
from pipelines.serving.http.metrics import Metrics
from pipelines.serving.http.recording import Recorder
from pipelines.serving.http.refusal import Refused, busy, unfit, unready
from pipelines.serving.http.settings import ServeSettings
from pipelines.serving.http.totals import Totals

Arrays = tuple[NDArray[Any], NDArray[Any]]
_LOG = logging.getLogger(__name__)
_MOST_VERSIONS = 32  # whose totals are kept


class Job:
    """A request that waits for the model.

    Attributes:
        loaded: The version that answers it.
        request: Its id.
        inputs: Its examples, [n, *input_shape].
        arrived: `time.perf_counter()` when the request came.
        future: Of the loop that waits for it.
        parts: Outputs of its first examples, call by call.
        done: Examples that these parts answer.
        error: Why it cannot be answered.
    """

    __slots__ = ("arrived", "done", "error", "future", "inputs", "loaded", "parts", "request")

    def __init__(
        self,
        loaded: Loaded,
        request: str,
        inputs: NDArray[Any],
        arrived: float,
        future: asyncio.Future[Arrays],
    ) -> None:
        self.loaded, self.request, self.inputs = loaded, request, inputs
        self.arrived, self.future = arrived, future
        self.parts: list[Arrays] = []
        self.done = 0
        self.error: Exception | None = None

    @property
    def left(self) -> int:
        """Examples that are not answered yet."""
        return len(self.inputs) - self.done

    @property
    def arrays(self) -> Arrays:
        """Raw outputs and answers of all its examples."""
        if len(self.parts) == 1:
            return self.parts[0]
        raw, answers = zip(*self.parts, strict=True)
        return np.concatenate(raw), np.concatenate(answers)


class Batcher:
    """A bounded queue, and the thread behind it that asks the model.

    Requests of one version that wait at the same time share a call. While a call runs the next
    batch gathers. What one request breaks stays with that request. A request of more than a batch
    is answered in parts, between which others have their turn.

    Attributes:
        totals: Of each version that was asked.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics, recorder: Recorder) -> None:
        self._settings = settings
        self._metrics, self._recorder = metrics, recorder
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._delay = settings.batch_delay_ms / 1000
        self._asked = self._taken = 0  # the loop counts one, the thread the other
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.totals: dict[int, Totals] = {}

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
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def full(self) -> bool:
        """Say whether no further request may wait."""
        return self.waiting >= self._settings.queue

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
            raise busy(f"{self._settings.queue} requests wait already; try again later")
        job = Job(loaded, request, inputs, arrived, self._loop.create_future())
        self._asked += 1
        self._queue.put(job)
        return await job.future

    def _work(self) -> None:
        waiting: deque[Job] = deque()
        ends = False
        while not ends or waiting:
            if not waiting:
                ends = not self._wait(waiting, None)
                if not waiting:
                    continue
            until = waiting[0].arrived + self._delay
            while not ends and sum(job.left for job in waiting) < self._settings.max_batch:
                left = until - time.perf_counter() if self._delay else 0.0
                before = len(waiting)
                ends = not self._wait(waiting, max(left, 0.0))
                if len(waiting) == before:
                    break
            batch = self._next(waiting)
            try:
                self._answer(batch)
            except Exception as error:
                _LOG.exception("a batch failed")
                for job in batch:
                    job.error = error
            if done := [job for job in batch if job.error is not None or not job.left]:
                self._settle(done)
            waiting.extend(job for job in batch if job.error is None and job.left)
            del batch, done  # a version that was swapped out is freed at once

    def _wait(self, waiting: deque[Job], seconds: float | None) -> bool:
        """Take a request from the queue if one comes in time; False: there will be none."""
        try:
            job = self._queue.get(timeout=seconds) if seconds != 0.0 else self._queue.get_nowait()
        except Empty:
            return True
        if job is None:
            return False
        waiting.append(job)
        return True

    def _next(self, waiting: deque[Job]) -> list[Job]:
        """Take requests for one call: of one version, in their order, as many as fit."""
        first = waiting.popleft()
        batch, room = [first], self._settings.max_batch - first.left
        while waiting and waiting[0].loaded is first.loaded and waiting[0].left <= room:
            job = waiting.popleft()
            batch.append(job)
            room -= job.left
        self._taken += sum(not job.done for job in batch)
        return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        """Ask the model once, or each request alone if that fails."""
        loaded, most = batch[0].loaded, self._settings.max_batch
        began = time.perf_counter()
        asked = [job.inputs[job.done : job.done + most] for job in batch]
        joined = asked[0] if len(asked) == 1 else np.concatenate(asked)
        try:
            raw, answers = loaded.model.both(joined, batch=len(joined))
        except UserError as error:
            if len(batch) > 1:
                for job in batch:
                    self._answer([job])
                return
            batch[0].error = self._told(batch[0], error)
            return
        seconds = time.perf_counter() - began
        start = 0
        for job, part in zip(batch, asked, strict=True):
            end = start + len(part)
            job.parts.append((raw[start:end], answers[start:end]))
            job.done, start = job.done + len(part), end
        self._metrics.ran(loaded.version, len(batch), len(joined), seconds)
        totals = self._totals(loaded.version)
        totals.calls += 1
        totals.computed += seconds
        totals.waited += sum(began - job.arrived for job in batch if len(job.parts) == 1)

    def _told(self, job: Job, error: UserError) -> Refused:
        """Return why a request failed: because of itself, or because the model fails on all."""
        form = job.loaded.model.form
        try:
            job.loaded.model.both(np.zeros((1, *form.input_shape), form.dtype))
        except UserError:
            _LOG.error("the model fails on every input: %s", error)
            return unready(f"the model cannot be asked: {error}")
        return unfit(f"the model cannot answer these inputs: {error}")

    def _totals(self, version: int) -> Totals:
        found = self.totals.get(version)
        if found is None:
            if len(self.totals) >= _MOST_VERSIONS:
                del self.totals[min(self.totals)]
            found = self.totals[version] = Totals()
        return found

    def _settle(self, done: Sequence[Job]) -> None:
        """Write down finished requests, then let their answers go."""
        for job in done:
            if job.error is None and not all(np.isfinite(part).all() for part in job.arrays):
                job.error = unfit("the model's answer to these inputs is no finite number")
            totals = self._totals(job.loaded.version)
            seconds = time.perf_counter() - job.arrived
            if job.error is None:
                totals.requests += 1
                totals.examples += len(job.inputs)
                totals.seconds += seconds
                totals.last = time.time_ns() // 1_000_000
            else:
                totals.failed += 1
                totals.failed_seconds += seconds
        try:
            self._recorder.record(
                [
                    (job.loaded, job.request, job.inputs, job.arrays, job.arrived)
                    for job in done
                    if job.error is None
                ]
            )
        except Exception:  # no request fails because it cannot be written down
            _LOG.exception("requests could not be recorded")
        if self._loop is not None:
            self._loop.call_soon_threadsafe(_resolve, done)


def _resolve(done: Sequence[Job]) -> None:
    for job in done:
        if job.future.done():
            continue  # its client has gone
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.arrays)

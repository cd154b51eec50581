"""Calls of the model: the requests of a batch together, and what is written down of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.serving.http.live import Loaded
from pipelines.serving.http.metrics import Metrics
from pipelines.serving.http.recording import Recorder
from pipelines.serving.http.refusal import Refused, unfit, unready
from pipelines.serving.http.totals import Totals

Arrays = tuple[NDArray[Any], NDArray[Any]]
_LOG = logging.getLogger(__name__)
_MOST_VERSIONS = 32  # whose totals are kept


class WaitingRequest:
    """A request that waits for the model.

    Attributes:
        loaded: The version that answers it.
        request: Its id.
        inputs: Its examples, [n, *input_shape].
        arrived: `time.perf_counter()` when the request came.
        future: Of the loop that waits for it.
        done: Examples that are answered.
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
    def age(self) -> float:
        """Seconds since it arrived."""
        return time.perf_counter() - self.arrived

    @property
    def ended(self) -> bool:
        """Whether it is answered, or cannot be."""
        return self.error is not None or not self.left

    @property
    def arrays(self) -> Arrays:
        """Raw outputs and answers of all its examples."""
        if len(self.parts) > 1:
            raw, answers = zip(*self.parts, strict=True)
            self.parts = [(np.concatenate(raw), np.concatenate(answers))]
        return self.parts[0]

    def resolve(self) -> None:
        """Let whoever waits for it go on; called in the loop."""
        if self.future.done():
            return  # its client has gone
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.arrays)


class ModelCalls:
    """Asks the model, one batch at a time.

    Attributes:
        totals: Of each version that was asked.
    """

    def __init__(self, most: int, metrics: Metrics, recorder: Recorder) -> None:
        self._most = most
        self._metrics, self._recorder = metrics, recorder
        self.totals: dict[int, Totals] = {}

    def run(self, batch: Sequence[WaitingRequest]) -> list[WaitingRequest]:
        """Ask the model about the next examples of some requests of one version.

        What one request breaks stays with that request.

        Returns:
            Those that have ended; they are written down.
        """
        try:
            self._answer(batch)
        except Exception as error:
            _LOG.exception("a batch failed")
            for job in batch:
                if job.left:
                    job.error = error
        done = [job for job in batch if job.ended]
        if done:
            self._write_down(done)
        return done

    def _answer(self, batch: Sequence[WaitingRequest]) -> None:
        """Ask the model once, or each request alone if that fails."""
        loaded = batch[0].loaded
        began = time.perf_counter()
        asked = [job.inputs[job.done : job.done + self._most] for job in batch]
        joined = asked[0] if len(asked) == 1 else np.concatenate(asked)
        try:
            raw, answers = loaded.model.both(joined, batch=len(joined))
        except UserError as error:
            if len(batch) > 1:
                for job in batch:
                    self._answer([job])
                return
            batch[0].error = _told(batch[0], error)
            return
        seconds = time.perf_counter() - began
        finite = bool(np.isfinite(raw).all() and np.isfinite(answers).all())
        start = 0
        for job, part in zip(batch, asked, strict=True):
            end = start + len(part)
            own = raw[start:end], answers[start:end]
            if not finite and not all(np.isfinite(array).all() for array in own):
                job.error = unfit("the model's answer to these inputs is no finite number")
            job.parts.append(own)
            job.done, start = job.done + len(part), end
        self._metrics.ran(loaded.version, len(batch), len(joined), seconds)
        totals = self._totals(loaded.version)
        totals.calls += 1
        totals.computed += seconds
        totals.waited += sum(began - job.arrived for job in batch if len(job.parts) == 1)

    def _totals(self, version: int) -> Totals:
        found = self.totals.get(version)
        if found is None:
            if len(self.totals) >= _MOST_VERSIONS:
                del self.totals[min(self.totals)]
            found = self.totals[version] = Totals()
        return found

    def _write_down(self, done: Sequence[WaitingRequest]) -> None:
        totals = self._totals(done[0].loaded.version)
        now = time.perf_counter()
        for job in done:
            if job.error is None:
                totals.requests += 1
                totals.examples += len(job.inputs)
                totals.seconds += now - job.arrived
            else:
                totals.failed += 1
                totals.failed_seconds += now - job.arrived
        totals.last = time.time_ns() // 1_000_000
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


def _told(job: WaitingRequest, error: UserError) -> Refused:
    """Return why a request failed: because of itself, or because the model fails on all."""
    form = job.loaded.model.form
    try:
        job.loaded.model.both(np.zeros((1, *form.input_shape), form.dtype))
    except UserError:
        _LOG.error("the model fails on every input: %s", error)
        return unready(f"the model cannot be asked: {error}")
    return unfit(f"the model cannot answer these inputs: {error}")

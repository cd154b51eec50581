"""What is kept of answered requests: drift scores, the request log, and the challenger's copy."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.serving.http.live import Live, Loaded, ShadowReceiver
from pipelines.serving.http.metrics import Metrics
from pipelines.serving.request_log import MOST_EXAMPLES, LoggedRequest, RequestLog, now
from pipelines.systems.onnx.runtime import fed
from pipelines.tasks.form import RECONSTRUCTION

Answered = tuple[Loaded, str, NDArray[Any], tuple[NDArray[Any], NDArray[Any]], float]
"""Version, id, inputs [n, …], raw outputs and answers [n, …], `perf_counter()` of its arrival."""
_LOG = logging.getLogger(__name__)


class ScoreBudget:
    """How many examples may be scored for drift: so many a second, and a second's worth at once.

    Scoring costs about as much as answering. A server with little to do scores everything; a busy
    one scores as many examples as a comparison needs, whatever they hold.

    Args:
        rate: Examples a second; 0: none.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left = self._most = max(rate, 1.0) if rate else 0.0
        self._seen = time.monotonic()

    def take(self, examples: int) -> bool:
        """Say whether a request's examples may be scored; they are counted if so.

        A large request may overdraw the budget; those after it then wait for it to fill.
        """
        at = time.monotonic()
        self._left = min(self._most, self._left + (at - self._seen) * self._rate)
        self._seen = at
        if self._left < 1.0:
            return False
        self._left -= examples
        return True


class Recorder:
    """Writes answered requests down before their answers are sent.

    Args:
        live: Whose answers they are.
        log: None: nothing is written.
        metrics: That count.
        shadow: Gets a copy; None: there is none.
        drift_rate: Examples a second that are scored for drift, at most.
    """

    def __init__(
        self,
        live: Live,
        log: RequestLog | None,
        metrics: Metrics,
        shadow: ShadowReceiver | None,
        drift_rate: float = 20.0,
    ) -> None:
        self._name = live.name
        self._budget = ScoreBudget(drift_rate)
        self._log, self._metrics, self._shadow = log, metrics, shadow
        self._failing = False

    def record(self, answered: Sequence[Answered]) -> None:
        """Keep what is to be kept of requests that one version has answered."""
        if not answered:
            return
        if self._log is not None:
            taken = [one for one in answered if self._log.takes(one[1])]
            if taken:
                self._write(self._log, taken)
        if self._shadow is not None:
            self._offer(self._shadow, answered)

    def _write(self, log: RequestLog, answered: Sequence[Answered]) -> None:
        drift = self._drift(answered)
        time_, records = now(), []
        for place, (loaded, request, inputs, arrays, arrived) in enumerate(answered):
            signature = loaded.signature
            kept = arrays[1][:MOST_EXAMPLES]
            pictures = signature.form.task == RECONSTRUCTION
            records.append(
                LoggedRequest(
                    time=time_,
                    request=request,
                    model=self._name,
                    version=loaded.version,
                    sha256=loaded.sha256,
                    examples=len(inputs),
                    seconds=time.perf_counter() - arrived,
                    answers=[] if pictures else kept.reshape(len(kept), -1).tolist(),
                    labels=kept.argmax(axis=1).tolist() if signature.scored(1) else [],
                    drift=drift.get(place, ()),
                )
            )
        arrays_by_name = (
            [fed(loaded.model.form, inputs) for loaded, _, inputs, _, _ in answered]
            if log.keep_inputs
            else []
        )
        log.append(records, arrays_by_name)

    def _drift(self, answered: Sequence[Answered]) -> dict[int, list[float]]:
        """Return the drift scores of first examples: place of a scored request → its scores."""
        loaded = answered[0][0]
        model = loaded.drift
        if model is None:
            return {}
        asked = {
            place: inputs[:MOST_EXAMPLES]
            for place, (_, _, inputs, _, _) in enumerate(answered)
            if self._budget.take(min(len(inputs), MOST_EXAMPLES))
        }
        if not asked:
            return {}
        try:
            scores = model.scores(np.concatenate(list(asked.values())))
        except Exception:
            self._metrics.unscored()
            if not self._failing:  # said once, counted always
                _LOG.exception("no drift score")
            self._failing = True
            return {}
        self._metrics.drifted(loaded.version, scores, loaded.reference)
        ends = np.cumsum([len(one) for one in asked.values()])[:-1]
        parts = np.split(scores, ends)
        return {place: part.tolist() for place, part in zip(asked, parts, strict=True)}

    def _offer(self, shadow: ShadowReceiver, answered: Sequence[Answered]) -> None:
        loaded = answered[0][0]
        inputs = [one[2] for one in answered]
        answers = [one[3][1] for one in answered]
        alone = len(answered) == 1
        shadow.offer(
            [one[1] for one in answered],
            [len(one) for one in inputs],
            inputs[0] if alone else np.concatenate(inputs),
            answers[0] if alone else np.concatenate(answers),
            loaded.version,
        )

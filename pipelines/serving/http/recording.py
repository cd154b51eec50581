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


class Recorder:
    """Writes answered requests down before their answers are sent."""

    def __init__(
        self, live: Live, log: RequestLog | None, metrics: Metrics, shadow: ShadowReceiver | None
    ) -> None:
        self._name = live.name
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
                    drift=drift[place] if drift else (),
                )
            )
        arrays_by_name = (
            [fed(loaded.model.form, inputs) for loaded, _, inputs, _, _ in answered]
            if log.keep_inputs
            else []
        )
        log.append(records, arrays_by_name)

    def _drift(self, answered: Sequence[Answered]) -> list[list[float]]:
        """Return the drift scores of each request's first examples; empty if there are none."""
        loaded = answered[0][0]
        model = loaded.drift
        if model is None:
            return []
        kept = [inputs[:MOST_EXAMPLES] for _, _, inputs, _, _ in answered]
        try:
            scores = model.scores(kept[0] if len(kept) == 1 else np.concatenate(kept))
        except Exception:
            self._metrics.unscored()
            if not self._failing:  # said once, counted always
                _LOG.exception("no drift score")
            self._failing = True
            return []
        self._metrics.drifted(loaded.version, scores, loaded.reference)
        ends = np.cumsum([len(one) for one in kept])[:-1]
        return [part.tolist() for part in np.split(scores, ends)]

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

"""A share of the traffic is copied to the challenger; its answers are compared and logged."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.paths import Layout
from pipelines.registry.last_seen import cached_file
from pipelines.serving.http.live import Live, Loaded
from pipelines.serving.http.metrics import Metrics
from pipelines.serving.request_log import (
    MOST_EXAMPLES,
    MOST_NUMBERS,
    LoggedRequest,
    RequestLog,
    Shadow,
    now,
)
from pipelines.serving.shadow.process import ShadowFailed, ShadowProcess
from pipelines.serving.shadow.run_challenger import MOST
from pipelines.serving.watch.lines import Challenger
from pipelines.systems.scratch import scratch

_log = logging.getLogger("prong.serve")
_WAITING = 32  # requests; what comes while so many wait is dropped
_LARGEST = 16 * 2**20  # bytes of the inputs of one request; a larger one is dropped
_LOAD, _ANSWER = 60.0, 10.0  # seconds
_MEMORY = 2 * 2**30
_NUMBERS = 1024  # of one answer; longer ones are images, and not kept
_DEATHS = 3  # after which a challenger is not asked again
_PAUSE = 2.0  # seconds before it is started again
_SAID = 10.0  # seconds between two lines of the server's log
_CLOSE = 0.01  # relative difference up to which two numbers count as the same


@dataclass(frozen=True)
class Compared:
    """One request, answered by both.

    Attributes:
        request: Its id.
        champion: Version whose answer was returned.
        challenger: Version that was only asked.
        sha256: Of the challenger.
        answers: Of the challenger, [n, …].
        agree: Share of examples with the same class; where nothing is classified, with numbers
            that differ by less than 1 %.
        difference: Mean absolute difference of the answers.
        seconds: That the challenger took.
    """

    request: str
    champion: int
    challenger: int
    sha256: str
    answers: NDArray[Any]
    agree: float
    difference: float
    seconds: float


@dataclass(frozen=True)
class _Offered:
    request: str
    inputs: NDArray[Any]
    answers: NDArray[Any]
    version: int


class ShadowTraffic:
    """What the server offers requests to (`pipelines.serving.http.live.ShadowReceiver`).

    Attributes:
        problem: Why the challenger is not asked; empty if it is, or there is none.
        dropped: Requests that were meant for it and that it was too slow for.
        compared: Requests that both answered.
    """

    def __init__(
        self,
        layout: Layout,
        live: Live,
        share: float,
        *,
        log: RequestLog,
        metrics: Metrics,
        memory: int = _MEMORY,
    ) -> None:
        """Prepare; `begin` starts the thread.

        Args:
            layout: The checkout.
            live: The version that answers.
            share: Of the requests that are offered, 0 to 1.
            log: For what the challenger answers, apart from the server's own.
            metrics: That count it.
            memory: Bytes that the challenger's process may use.
        """
        self._layout, self._live, self._share = layout, live, share
        self._log, self._metrics, self._memory = log, metrics, memory
        self._waiting: queue.Queue[_Offered] = queue.Queue(_WAITING)
        self._challenger: Challenger | None = None
        self._stop = threading.Event()
        self._random = random.Random()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self.problem, self.dropped, self.compared = "", 0, 0
        self.pid = 0

    def begin(self) -> None:
        """Start the thread that asks the challenger."""
        self._thread.start()

    def end(self) -> None:
        """End the challenger's process and the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_ANSWER)

    def follow(self, challenger: Challenger | None) -> None:
        """Let another version be asked from now on; None: none."""
        self._challenger = challenger

    def offer(
        self,
        requests: Sequence[str],
        counts: Sequence[int],
        inputs: NDArray[Any],
        answers: NDArray[Any],
        version: int,
    ) -> None:
        """Take or drop requests that were answered; see the protocol."""
        if self._challenger is None or self.problem:
            return
        start = 0
        for request, count in zip(requests, counts, strict=True):
            part = slice(start, start + count)
            start += count
            if self._random.random() >= self._share:
                continue
            if count > MOST or inputs[part].nbytes > _LARGEST:
                self._drop()
                continue
            try:
                self._waiting.put_nowait(_Offered(request, inputs[part], answers[part], version))
            except queue.Full:
                self._drop()

    def _drop(self) -> None:
        self.dropped += 1
        self._metrics.shadow_dropped()

    def _run(self) -> None:
        while not self._stop.is_set():
            challenger = self._challenger
            if challenger is None or not self._live.ready:
                self._stop.wait(0.2)
                continue
            self._ask_until_changed(challenger)

    def _ask_until_changed(self, challenger: Challenger) -> None:
        """Ask one version until another is wanted, or it has died too often."""
        champion = self._live.current
        deaths = 0

        def wanted() -> bool:
            same = challenger == self._challenger and champion is self._live.current
            return same and not self._stop.is_set()

        while wanted() and deaths < _DEATHS:
            try:
                self._ask(challenger, champion, wanted)
            except (ShadowFailed, OSError) as error:
                deaths += 1
                said = {"version": challenger.version, "reason": str(error), "deaths": deaths}
                _log.warning("shadow failed", extra=said)
                if deaths < _DEATHS:
                    self._stop.wait(_PAUSE)
                else:
                    self.problem = f"version {challenger.version} is not asked any more: {error}"
        while wanted():
            self._stop.wait(0.2)
        self.problem = ""

    def _ask(self, challenger: Challenger, champion: Loaded, wanted: Callable[[], bool]) -> None:
        """Ask one process until another version is wanted.

        Raises:
            ShadowFailed: If it fails.
            OSError: If it cannot be started.
        """
        layout, classified = Layout(self._layout.root.resolve()), bool(champion.model.form.classes)
        file, other = (cached_file(layout, one.sha256) for one in (challenger, champion))
        with (
            scratch(layout.state, "shadow") as folder,
            ShadowProcess(
                file, challenger.sha256, other, folder=folder, memory=self._memory
            ) as process,
        ):
            self.pid = process.pid
            process.wait_ready(_LOAD)
            _log.info("shadow loaded", extra={"version": challenger.version})
            said = time.monotonic()
            while wanted():
                try:
                    offered = self._waiting.get(timeout=0.2)
                except queue.Empty:
                    continue
                began = time.monotonic()
                found = process.ask(offered.inputs, offered.answers, _ANSWER)
                ended = time.monotonic()
                compared = _compared(
                    offered, found, challenger, ended - began, classified=classified
                )
                self._keep(compared, classified)
                if ended - said > _SAID:
                    said = ended
                    _log.info("shadow", extra=self._figures(compared))

    def _keep(self, compared: Compared, classified: bool) -> None:
        """Count and log what the challenger answered."""
        self.compared += 1
        examples, agree = len(compared.answers), compared.agree
        same = round(agree * examples)
        self._metrics.shadowed(compared.challenger, same, examples - same, compared.difference)
        kept = compared.answers[:MOST_EXAMPLES].reshape(min(examples, MOST_EXAMPLES), -1)
        record = LoggedRequest(
            time=now(),
            request=compared.request,
            model=self._live.name,
            version=compared.challenger,
            sha256=compared.sha256,
            examples=examples,
            seconds=compared.seconds,
            answers=kept[:, :MOST_NUMBERS].tolist() if kept.shape[1] <= _NUMBERS else [],
            labels=kept.argmax(axis=1).tolist() if classified else [],
            shadow=Shadow(compared.challenger, agree),
        )
        self._log.append([record])

    def _figures(self, compared: Compared) -> dict[str, object]:
        return {
            "version": compared.challenger,
            "compared": self.compared,
            "dropped": self.dropped,
            "agree": round(compared.agree, 4),
            "difference": float(f"{compared.difference:.3g}"),
        }


def _compared(
    offered: _Offered,
    found: NDArray[Any],
    challenger: Challenger,
    seconds: float,
    *,
    classified: bool,
) -> Compared:
    theirs = found.astype(np.float64).reshape(len(found), -1)
    ours = offered.answers.astype(np.float64).reshape(len(found), -1)
    with np.errstate(all="ignore"):  # whatever the challenger answered
        if classified:
            same = theirs.argmax(axis=1) == ours.argmax(axis=1)
        else:
            same = (np.abs(theirs - ours) <= _CLOSE * np.abs(ours) + 1e-9).all(axis=1)
        difference = float(np.abs(theirs - ours).mean())
    return Compared(
        offered.request,
        offered.version,
        challenger.version,
        challenger.sha256,
        found,
        float(same.mean()),
        difference,
        seconds,
    )

"""The runs of trainings: written as they happen, never in the training's way."""

from __future__ import annotations

import logging
import posixpath
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipelines.core.errors import Interrupted
from pipelines.core.paths import Layout
from pipelines.systems.liveness import HEARTBEAT, identity
from pipelines.systems.mlflow.address import answering, reason
from pipelines.systems.mlflow.store import connect, experiment_id

WEIGHTS_TAG = "prong.weights_sha256"
"""Tag: the sha256 of the network.safetensors that the run made."""
HISTORY_TAG = "prong.history"
"""Tag: `complete` once every point of the run has arrived."""
LONGEST_TAG = 5000
POINTS_PER_CALL = 1000  # MLflow's limit of points per call
_PARAMS = 100  # and of params
_BEAT = 60.0  # seconds
_log = logging.getLogger(__name__)


def metric_name(name: str) -> str:
    """Return `name` as MLflow takes it: other characters become `_`, and it is a plain path."""
    clean = re.sub(r"[^A-Za-z0-9_.\-/ :]", "_", name)
    parts = [p if p.strip(".") else "_" * len(p) for p in clean.split("/") if p]
    return posixpath.join(*parts)[:250].rstrip("/") if parts else "_"


class TrainingRun:
    """A run that is being trained; a thread of its own brings its points to MLflow.

    Attributes:
        run_id: MLflow's id of the run.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        *,
        known: Iterable[tuple[str, int]] = (),
        period: float = 2.0,
    ) -> None:
        """Begin to bring points.

        Args:
            client: Of the store.
            run_id: MLflow's id of the run.
            known: Names and steps of points that the run has already.
            period: Seconds between two deliveries.
        """
        self.run_id = run_id
        self._known = set(known)
        self._client, self._period = client, period
        self._lock, self._ending = threading.Lock(), threading.Event()
        self._metrics: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._beat = time.monotonic()
        self._status, self._warned, self._ended = "FINISHED", False, False
        self._thread = threading.Thread(target=self._work, name="mlflow-points", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take points; returns at once. A point that the run has is not taken again.

        Args:
            metrics: By name; characters that MLflow does not take become `_`.
            step: Training step, ≥ 0.
        """
        now = int(time.time() * 1000)
        points = [Metric(metric_name(k), float(v), now, int(step)) for k, v in metrics.items()]
        with self._lock:
            for point in points:
                if (point.key, point.step) not in self._known:
                    self._known.add((point.key, point.step))
                    self._metrics.append(point)

    def tag(self, key: str, value: str) -> None:
        """Take a tag; returns at once."""
        with self._lock:
            self._tags[key] = str(value)[:LONGEST_TAG]

    def _work(self) -> None:
        wait = self._period
        while not self._ending.wait(wait):
            if time.monotonic() - self._beat >= _BEAT:
                self.tag(HEARTBEAT, f"{time.time():.0f}")
                self._beat = time.monotonic()
            wait = self._period if self._send() else min(2 * wait, 30.0)
        if self._send():
            self.tag(HISTORY_TAG, "complete")
            end = partial(self._client.set_terminated, self.run_id, self._status)
            self._ended = self._send() and self._try(end)

    def _send(self) -> bool:
        """Bring what is there; what does not arrive is kept. Return whether all arrived.

        A point sent twice is stored once: MLflow knows it by name, step, time and value.
        """
        while True:
            with self._lock:
                metrics, tags = self._metrics[:POINTS_PER_CALL], dict(self._tags)
            if not metrics and not tags:
                return True
            entries = [RunTag(k, v) for k, v in tags.items()]
            send = partial(self._client.log_batch, self.run_id, metrics=metrics, tags=entries)
            if not self._try(send):
                return False
            with self._lock:
                del self._metrics[: len(metrics)]
                self._tags = {k: v for k, v in self._tags.items() if tags.get(k) != v}

    def _try(self, call: Callable[[], object]) -> bool:
        try:
            call()
        except Exception as error:  # whatever it is, training goes on
            if not self._warned and not self._ending.is_set():
                why = reason(" ".join(str(error).split()))
                _log.warning("MLflow takes no points (%s); training goes on, they are kept", why)
            self._warned = True
            return False
        return True

    def end(self, status: str, patience: float) -> None:
        """Bring the last points and end the run.

        Args:
            status: FINISHED, FAILED or KILLED.
            patience: Seconds to wait for MLflow; what it has not taken by then is lost to it.
        """
        self._status = status
        self._ending.set()
        self._thread.join(patience)
        if not self._ended:
            _log.warning(
                "MLflow did not take the end of run %s (%d points left); "
                "registering will bring them from the reports",
                self.run_id,
                len(self._metrics),
            )


def _terminated(signum: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


@contextmanager
def training_run(
    layout: Layout,
    *,
    experiment: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    resume: str | None = None,
) -> Iterator[TrainingRun]:
    """Open a run for a training and end it as FINISHED, FAILED or KILLED.

    `Interrupted`, SIGINT and SIGTERM end it as KILLED.

    SIGTERM, where nothing else handles it, becomes SystemExit inside the block. A store that goes
    away after the start costs a warning, not the training.

    Args:
        layout: The checkout.
        experiment: Its name; made if absent.
        params: Knobs by full name.
        tags: Besides those that identify this process.
        resume: The run to go on with, if the store has it; its points are not sent again.

    Raises:
        UserError: If the store cannot be used.
        Unavailable: If it does not answer at the start.
    """
    client = connect(layout)
    with answering(layout):
        named = {**tags, **identity()}
        known = _reopened(client, resume, named) if resume else None
        if resume and known is not None:
            run_id = resume
        else:
            run_id, known = create_run(layout, client, experiment, params, named), set()
    run = TrainingRun(client, run_id, known=known)
    main = threading.current_thread() is threading.main_thread()
    handle = main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if handle:
        signal.signal(signal.SIGTERM, _terminated)
    status, patience = "FAILED", 10.0
    try:
        yield run
        status, patience = "FINISHED", 20.0
    except (KeyboardInterrupt, SystemExit, GeneratorExit, Interrupted):
        status, patience = "KILLED", 4.0  # who sends SIGTERM does not wait long
        raise
    finally:
        run.end(status, patience)
        if handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _reopened(
    client: MlflowClient, run_id: str, tags: Mapping[str, str]
) -> set[tuple[str, int]] | None:
    """Let a run go on in this process; return the names and steps of its points.

    None if the store has no such run, or it was deleted.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    if run.info.lifecycle_stage != "active":
        return None
    for key, value in tags.items():  # who it is before it runs: else it could be taken for dead
        client.set_tag(run_id, key, str(value)[:LONGEST_TAG])
    client.set_tag(run_id, HISTORY_TAG, "")
    client.update_run(run_id, status="RUNNING")
    return {
        (name, point.step)
        for name in run.data.metrics
        for point in client.get_metric_history(run_id, name)
    }


def create_run(
    layout: Layout,
    client: MlflowClient,
    experiment: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
) -> str:
    """Make a run, with its parameters and tags; return its id."""
    run = client.create_run(
        experiment_id(layout, client, experiment),
        tags={k: str(v)[:LONGEST_TAG] for k, v in tags.items()},
    )
    entries = [Param(k, str(v)[:LONGEST_TAG]) for k, v in params.items()]
    for start in range(0, len(entries), _PARAMS):
        client.log_batch(run.info.run_id, params=entries[start : start + _PARAMS])
    return str(run.info.run_id)

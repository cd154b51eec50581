"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pipelines.serving.http.live import Live

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
_RANKS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1)
_DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.5, 1)


class Metrics:
    """Counts and times of one server; every method may be called from any thread.

    Attributes:
        registry: Of prometheus_client; nothing is shared with other servers in the process.
    """

    def __init__(self, live: Live) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "prong_requests",
            "Requests that were answered",
            ["route", "version", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "prong_request_seconds",
            "From a request's arrival to its answer",
            ["route", "version"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "prong_batch_examples",
            "Examples in one call of the model",
            ["version"],
            buckets=_SIZES,
            registry=registry,
        )
        self._joined = Histogram(
            "prong_batch_requests",
            "Requests in one call of the model",
            ["version"],
            buckets=_SIZES,
            registry=registry,
        )
        self._inference = Histogram(
            "prong_inference_seconds",
            "One call of the model",
            ["version"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._waiting = Gauge(
            "prong_queue_requests", "Requests that wait for the model", registry=registry
        )
        self._lost = Gauge(
            "prong_log_lost", "Requests that the request log could not keep", registry=registry
        )
        self._ranks = Histogram(
            "prong_drift_rank",
            "Share of held-out examples with a smaller drift score",
            ["version"],
            buckets=_RANKS,
            registry=registry,
        )
        self._unscored = Counter(
            "prong_drift_failures", "Batches without a drift score", registry=registry
        )
        self._shadowed = Counter(
            "prong_shadow_examples",
            "Examples that the challenger answered, by whether its answer was the same",
            ["version", "agree"],
            registry=registry,
        )
        self._differences = Histogram(
            "prong_shadow_difference",
            "Mean difference between the challenger's answers and the champion's, by batch",
            ["version"],
            buckets=_DIFFERENCES,
            registry=registry,
        )
        self._dropped = Counter(
            "prong_shadow_dropped", "Requests that no challenger saw", registry=registry
        )
        self.registry.register(_State(live))
        self._answered: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._ran: dict[int, tuple[Histogram, ...]] = {}

    def watch(self, waiting: Callable[[], float], lost: Callable[[], float]) -> None:
        """Say where the queue's length and the count of lost log records are read."""
        self._waiting.set_function(waiting)
        self._lost.set_function(lost)

    def answered(self, route: str, version: str, status: int, seconds: float) -> None:
        """Count an answer, whether of success or not.

        Args:
            route: A fixed name, not the path that the client sent.
            version: That answered; empty where none did.
            status: Of HTTP.
            seconds: Since the request arrived.
        """
        key = (route, version, status)
        found = self._answered.get(key)
        if found is None:  # looking up labels takes longer than counting
            found = self._requests.labels(*key), self._seconds.labels(route, version)
            self._answered[key] = found
        found[0].inc()
        found[1].observe(seconds)

    def ran(self, version: int, requests: int, examples: int, seconds: float) -> None:
        """Count a call of the model."""
        found = self._ran.get(version)
        if found is None:
            every = (self._batches, self._joined, self._inference)
            found = self._ran[version] = tuple(one.labels(version) for one in every)
        for one, value in zip(found, (examples, requests, seconds), strict=True):
            one.observe(value)

    def drifted(
        self, version: int, scores: NDArray[np.float64], reference: NDArray[np.float64]
    ) -> None:
        """Count drift scores [n] by their rank among those of held-out examples [m]."""
        if len(reference):
            histogram = self._ranks.labels(version)
            for rank in (np.searchsorted(reference, scores) / len(reference)).tolist():
                histogram.observe(rank)

    def unscored(self) -> None:
        """Count a batch whose drift score failed."""
        self._unscored.inc()

    def shadowed(self, version: int, agree: int, differ: int, difference: float) -> None:
        """Count what the challenger said to a batch.

        Args:
            version: Of the challenger.
            agree: Examples that it answered as the champion did.
            differ: The other ones.
            difference: Mean absolute difference of the answers' numbers.
        """
        self._shadowed.labels(version, "yes").inc(agree)
        self._shadowed.labels(version, "no").inc(differ)
        self._differences.labels(version).observe(difference)

    def shadow_dropped(self, requests: int = 1) -> None:
        """Count requests that were meant for the challenger and dropped."""
        self._dropped.inc(requests)

    def text(self) -> bytes:
        """Return all of it in Prometheus's text format."""
        return generate_latest(self.registry)


class _State(Collector):
    """The version that answers, as it is when somebody looks."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        live = self._live
        yield GaugeMetricFamily("prong_ready", "Whether a version is loaded", value=live.ready)
        problems = len(live.problems)
        yield GaugeMetricFamily(
            "prong_registry_problems", "What is wrong with the registry", value=problems
        )
        yield CounterMetricFamily("prong_reloads", "Changes of version", value=live.swaps)
        if live.ready:
            loaded = live.current
            told = {
                "name": live.name,
                "version": str(loaded.version),
                "sha256": loaded.sha256,
                "provider": loaded.model.provider,
            }
            yield InfoMetricFamily("prong_model", "The version that answers", value=told)
            since = loaded.since.timestamp()
            yield GaugeMetricFamily("prong_model_since_seconds", "When it began", value=since)

"""What each version has answered, as Triton's clients ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Totals:
    """Counts and nanoseconds of one version since it was loaded; one thread writes.

    Attributes:
        requests: That were answered.
        failed: That the model could not answer.
        examples: In those requests.
        calls: Of the model.
        seconds: From arrival to answer, over the answered requests.
        failed_seconds: Likewise over the failed ones.
        waited: From arrival to the first call of the model, over all.
        computed: Seconds in calls of the model.
        last: When the last request was answered, milliseconds since 1970.
    """

    requests: int = 0
    failed: int = 0
    examples: int = 0
    calls: int = 0
    seconds: float = 0.0
    failed_seconds: float = 0.0
    waited: float = 0.0
    computed: float = 0.0
    last: int = 0

    def told(self, name: str, version: int) -> dict[str, Any]:
        """Return it as Triton's statistics of one version."""
        every = self.requests + self.failed
        return {
            "name": name,
            "version": str(version),
            "last_inference": self.last,
            "inference_count": self.examples,
            "execution_count": self.calls,
            "inference_stats": {
                "success": _entry(self.requests, self.seconds),
                "fail": _entry(self.failed, self.failed_seconds),
                "queue": _entry(every, self.waited),
                "compute_input": _entry(every, 0.0),
                "compute_infer": _entry(every, self.computed),
                "compute_output": _entry(every, 0.0),
                "cache_hit": _entry(0, 0.0),
                "cache_miss": _entry(0, 0.0),
            },
            "batch_stats": [],
            "memory_usage": [],
        }


def _entry(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}

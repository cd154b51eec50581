"""Released versions for tests of the monitor: what the registry would say, held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipelines.monitoring.comparison import Examples
from pipelines.monitoring.look import HeldOut
from pipelines.serving.request_log import LoggedRequest

HASHES = {number: f"{number:064x}" for number in range(1, 9)}
MODEL = "digits-cnn"
CLASSES = tuple("0123")


def drawn(seed: int, count: int, *, shift: float = 0.0) -> Examples:
    """Return scores, probabilities and labels of a classifier of four classes."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(len(CLASSES), size=count)
    logits = draw.normal(0, 1, (count, len(CLASSES)))
    logits[np.arange(count), truth] += 6 - 3 * shift
    powers = np.exp(logits - logits.max(1, keepdims=True))
    answers = powers / powers.sum(1, keepdims=True)
    return Examples(draw.chisquare(30, count) * (1 + 0.5 * shift), answers, answers.argmax(1))


def requests(
    examples: Examples, version: int = 3, *, each: int = 2, start: int = 0, hour: int = 10
) -> list[LoggedRequest]:
    """Return records of requests of some examples each."""
    found = []
    for at in range(0, examples.count, each):
        end = at + each
        found.append(
            LoggedRequest(
                time=f"2026-11-02T{hour:02d}:00:00.000+00:00",
                request=f"r-{start + at}",
                model=MODEL,
                version=version,
                sha256=HASHES[version],
                examples=min(each, examples.count - at),
                seconds=0.001,
                answers=examples.answers[at:end].tolist(),
                labels=examples.labels[at:end].tolist(),
                drift=examples.scores[at:end].tolist(),
            )
        )
    return found


@dataclass
class Known:
    """Released versions, their references, and which is live."""

    champion: int | None = 3
    numbers: Sequence[int] = (1, 2, 3)
    held_out: Examples = field(default_factory=lambda: drawn(1000, 1000))
    threshold: float = 43.8
    asked: list[int] = field(default_factory=list)

    def sha256(self, version: int) -> str:
        self.asked.append(version)
        return HASHES[version] if version in self.numbers else ""

    def reference(self, version: int) -> HeldOut:
        said = f"{self.held_out.count} held-out examples of its drift graph"
        return HeldOut(self.held_out, said, "layers", CLASSES, self.threshold)


def renamed(records: Sequence[LoggedRequest], **values: object) -> list[LoggedRequest]:
    return [replace(record, **values) for record in records]  # type: ignore[arg-type]

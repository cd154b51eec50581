"""Examples from the request log, version by version, evenly drawn where there are many."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from pipelines.monitoring.comparison import Examples
from pipelines.serving.request_log import LoggedRequest

MOST = 10_000
"""Examples of a version that are kept: of more, each has the same chance."""
MOST_VERSIONS = 50
"""Versions that one look takes; lines of further ones are refused."""
Kept = tuple[list[float] | None, int | None, float | None]
"""One example: the first numbers of its answer, its class, its drift score."""
Key = tuple[int, str]
"""A version's number, and the sha256 of its file."""


@dataclass
class Sample:
    """What the log says of one version.

    Attributes:
        requests: How many, with those of earlier looks that had too few examples.
        examples: In all of them.
        drawn_from: Those whose answers the log has.
        since: Time of the first request, ISO 8601; empty if there is none.
        until: Of the last.
        kept: Examples that were drawn, at most `MOST`.
        shadow: The challenger's version → its requests, and the sum of its agreement.
    """

    requests: int = 0
    examples: int = 0
    drawn_from: int = 0
    since: str = ""
    until: str = ""
    kept: list[Kept] = field(default_factory=list)
    shadow: dict[int, tuple[int, float]] = field(default_factory=dict)

    def add(self, record: LoggedRequest, draw: random.Random) -> None:
        """Add a request and its examples."""
        self.requests += 1
        self.examples += record.examples
        self.since = min(self.since or record.time, record.time)
        self.until = max(self.until, record.time)
        if record.shadow is not None:
            count, agreed = self.shadow.get(record.shadow.version, (0, 0.0))
            self.shadow[record.shadow.version] = (count + 1, agreed + record.shadow.agree)
        parts = (record.answers, record.labels, record.drift)
        for at in range(max(len(part) for part in parts)):
            self.drawn_from += 1
            place = len(self.kept)
            if place >= MOST:  # reservoir sampling
                place = draw.randrange(self.drawn_from)
                if place >= MOST:
                    continue
            else:
                self.kept.append((None, None, None))
            self.kept[place] = (
                list(record.answers[at]) if len(record.answers) else None,
                record.labels[at] if len(record.labels) else None,
                record.drift[at] if len(record.drift) else None,
            )

    def of_width(self, width: int) -> Examples:
        """Return the examples for a comparison with answers of so many numbers.

        Answers of another length, which the version cannot have given, are left out.
        """
        rows = [row for row, _, _ in self.kept if row is not None and len(row) == width]
        return Examples(
            scores=np.array([score for _, _, score in self.kept if score is not None], float),
            answers=np.array(rows, float).reshape(len(rows), width),
            labels=np.array([label for _, label, _ in self.kept if label is not None], np.int64),
        )


def gather(
    records: Iterable[LoggedRequest],
    samples: dict[Key, Sample],
    model: str,
    released: Callable[[int], str],
    since: datetime | None = None,
) -> int:
    """Add requests to the samples of their versions.

    Args:
        records: From the log.
        samples: Version → its examples; added to.
        model: Records of another one are refused.
        released: Returns the sha256 of a version's released file, empty if there is none. A
            record that names another file was written by something else, and is refused.
        since: Only requests from then on.

    Returns:
        How many records were refused.
    """
    draw, refused = random.Random(0), 0
    asked: dict[int, str] = {}
    for record in records:
        if since is not None and datetime.fromisoformat(record.time) < since:
            continue
        number = record.version
        if number not in asked:
            known = len(asked) < MOST_VERSIONS
            asked[number] = released(number) if known else ""
        if record.model != model or not asked[number] or asked[number] != record.sha256:
            refused += 1
            if len(asked) > MOST_VERSIONS:
                del asked[number]
            continue
        samples.setdefault((number, record.sha256), Sample()).add(record, draw)
    return refused

"""What a scheduled run does in view of the others, as pure functions.

Two runs for one time, a backlog after a night without a worker, a run that was killed: each has
one answer, and it does not depend on which process asks first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pipelines.core.errors import Unavailable

Phase = Literal["waiting", "running", "done", "skipped"]
ATTEMPTS = 3
"""How often a run whose process died is begun in all."""


@dataclass(frozen=True)
class Due:
    """One run of a deployment, as the others see it.

    Attributes:
        run_id: Prefect's id.
        scheduled: The time it was made for; stays the same when it is begun again.
        phase: Where it stands: `done` whether it ended well or not, `skipped` if it never worked.
    """

    run_id: str
    scheduled: datetime
    phase: Phase

    @property
    def rank(self) -> tuple[datetime, str]:
        """The later one goes first; the id decides between two for one time."""
        return self.scheduled, self.run_id


@dataclass(frozen=True)
class Turn:
    """What a run is to do.

    Attributes:
        skip: Why it is not to work; empty if it is.
        overtaken: Waiting runs in whose place it works.
    """

    skip: str
    overtaken: tuple[str, ...]


def turn_of(me: Due, others: Sequence[Due], now: datetime) -> Turn:
    """Decide between the runs of one deployment: one per scheduled time, of a backlog the newest.

    Args:
        me: The run that asks.
        others: The other runs of its deployment.
        now: Runs made for a later time do not count.
    """
    due = [run for run in others if run.scheduled <= now and run.run_id != me.run_id]
    for run in due:
        if run.scheduled == me.scheduled and run.phase in ("running", "done"):
            return Turn(f"run {run.run_id} was for the same time", ())
    waiting = [run for run in due if run.phase == "waiting"]
    newest = max(waiting, key=lambda run: run.rank, default=me)
    if newest.rank > me.rank:
        return Turn(
            f"late: run {newest.run_id}, for {newest.scheduled.isoformat()}, takes its place", ()
        )
    return Turn("", tuple(sorted(run.run_id for run in waiting)))


def to_begin_again(dead: Sequence[tuple[Due, int]], others: Sequence[Due]) -> str | None:
    """Return which of the runs whose process died is to be begun again, if any.

    The newest, unless a newer one took over (waiting, at work or done) or it died too often.

    Args:
        dead: Runs of one deployment, each with how often it was begun.
        others: The deployment's runs that did not die; only those due by now.
    """
    if not dead:
        return None
    newest, begun = max(dead, key=lambda item: item[0].rank)
    later = [run for run in others if run.phase != "skipped" and run.rank > newest.rank]
    return None if later or begun >= ATTEMPTS else newest.run_id


def can_pass(error: BaseException) -> bool:
    """Say whether the same run may succeed later: only where an outside system was silent."""
    return isinstance(error, Unavailable)


def pauses(retries: int, first: float, longest: float = 600.0) -> Iterator[float]:
    """Yield the seconds before each retry: doubled each time, up to `longest`."""
    for number in range(retries):
        yield min(first * 2.0**number, longest)

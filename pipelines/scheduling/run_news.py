"""What a worker prints of the runs of its checkout: one line for each that begins or ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from pipelines.core.text import shown
from pipelines.scheduling.past_runs import NextRun, PastRun


class RunNews:
    """Turns what Prefect says of runs into lines, each of which is given once.

    Args:
        since: Runs that had ended by then are not told.
    """

    def __init__(self, since: datetime) -> None:
        self._since = since
        self._told: set[tuple[str, int, str]] = set()
        self._schedules: dict[str, str] = {}

    def lines(
        self, runs: Sequence[PastRun], next_runs: Sequence[NextRun], now: datetime
    ) -> Iterator[str]:
        """Yield what is new: runs begun, runs ended, and when each deployment runs next.

        Args:
            runs: The latest runs, the latest first.
            next_runs: One for each deployment.
            now: The time that the lines begin with.
        """
        ended = set()
        for run in reversed(runs):
            what = f"{run.deployment}  {run.name}"
            again = f" (attempt {run.attempt})" if run.attempt > 1 else ""
            if self._is_new(run, "begun"):
                yield _line(now, f"{what}  begun{again}")
            if run.seconds is not None and self._is_new(run, "ended"):
                said = f": {run.came_of}" if run.came_of else ""
                yield _line(now, f"{what}  {run.outcome} after {run.seconds:.0f} s{said}")
                ended.add(run.deployment)
        for one in next_runs:
            if one.deployment in ended or self._schedules.get(one.deployment) != one.note:
                yield _line(now, f"{one.deployment}  {when(one)}")
        known = {one.deployment: one.note for one in next_runs}
        for name in sorted(set(self._schedules) - set(known)):
            yield _line(now, f"{name}  is scheduled no more")
        self._schedules = known

    def _is_new(self, run: PastRun, event: str) -> bool:
        key = (run.run_id, run.attempt, event)
        if key in self._told:
            return False
        self._told.add(key)
        over = run.seconds is not None
        return not (over and run.began + timedelta(seconds=run.seconds or 0.0) < self._since)


def when(one: NextRun) -> str:
    """Return in words when a deployment runs next."""
    if one.due is None:
        return f"no next run: {one.note}"
    return f"next run {one.due.astimezone():%Y-%m-%d %H:%M %Z} ({one.note})"


def _line(now: datetime, said: str) -> str:
    return f"{now.astimezone():%Y-%m-%d %H:%M:%S}  {shown(said)}"

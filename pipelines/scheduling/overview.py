"""What is scheduled in a checkout, whether a worker is there to run it, and what ran last.

Prefect is imported late: what it reads as it is imported is set first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipelines.core.paths import Layout
from pipelines.scheduling.worker import working
from pipelines.systems.prefect.server import prefect_api

if TYPE_CHECKING:
    from pipelines.scheduling.past_runs import NextRun, PastRun

RUNS = 5
"""How many past runs are shown."""


@dataclass(frozen=True)
class Overview:
    """How the runs of a checkout stand.

    Attributes:
        next_runs: One for each deployment of the checkout, by name.
        worker: Whether a worker is there to execute them.
        runs: The runs that began last, the latest first.
    """

    next_runs: tuple[NextRun, ...]
    worker: bool
    runs: tuple[PastRun, ...]

    @property
    def schedule(self) -> str:
        """What there is to say about the schedule as a whole; empty if all is as it should be."""
        if not self.next_runs:
            return "none scheduled"
        if not self.worker and any(one.due for one in self.next_runs):
            return "scheduled, but no worker runs: start `prong worker`"
        return ""


def overview(layout: Layout) -> Overview:
    """Read how the runs of a checkout stand; a brief server is started if none is there.

    Args:
        layout: The checkout; its environment is set.

    Raises:
        Unavailable: If the server does not answer.
    """
    with prefect_api(layout) as wait:
        from pipelines.scheduling import past_runs
        from pipelines.systems.prefect.connection import api
        from pipelines.systems.prefect.deployed_flows import workers_at_work

        wait()
        with api() as client:
            mine = past_runs.deployments(client, layout)
            names = {one.id: one.name for one in mine}
            pools = {one.work_pool_name for one in mine if one.work_pool_name}
            worker = working(layout) is not None or (
                _elsewhere() and any(workers_at_work(client, pool) for pool in sorted(pools))
            )
            return Overview(
                next_runs=tuple(past_runs.next_run(one) for one in mine),
                worker=worker,
                runs=tuple(past_runs.latest(client, layout, names, RUNS)),
            )


def _elsewhere() -> bool:
    """Say whether the server is one that workers of other machines may use."""
    host = urlsplit(os.environ.get("PREFECT_API_URL", "")).hostname
    return host not in (None, "127.0.0.1", "localhost", "::1")

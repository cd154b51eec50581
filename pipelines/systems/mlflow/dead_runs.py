"""Training runs whose process was killed: they must not stay RUNNING for ever."""

from __future__ import annotations

from pipelines.core.paths import Layout
from pipelines.systems.liveness import START, dead
from pipelines.systems.mlflow.address import answering
from pipelines.systems.mlflow.store import connect


def close_dead_runs(layout: Layout) -> list[str]:
    """End as KILLED every training run whose process is gone, and return their ids.

    A process of this boot and namespace is looked up; any other counts as gone when it has given
    no sign of life for `STALE` seconds. Runs that other programs made are left alone.

    Raises:
        UserError: If the store cannot be used.
        Unavailable: If it does not answer.
    """
    client = connect(layout)
    closed = []
    with answering(layout):
        experiments = [e.experiment_id for e in client.search_experiments()]
        if not experiments:
            return []
        found = f"attributes.status = 'RUNNING' and tags.`{START}` != ''"
        for run in client.search_runs(experiments, found):
            if dead(run.data.tags):
                client.set_tag(run.info.run_id, "prong.closed", "its process was gone")
                client.set_terminated(run.info.run_id, "KILLED")
                closed.append(run.info.run_id)
    return closed

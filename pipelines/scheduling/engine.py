"""The process of one scheduled run: `python -m pipelines.scheduling.engine`, as a worker starts it.

Prefect's own engine does the work. Before it, this module makes sure that the process ends when
its worker is gone, and signs the run, so that others can find out whether it still has a process.
"""

from __future__ import annotations

from uuid import UUID

from pipelines.systems.prefect.run_process import execute, given_run
from pipelines.systems.processes import end_with_keeper


def main() -> None:
    """Sign the run that the environment names, then execute it."""
    end_with_keeper()
    from pipelines.core.environment import open_checkout

    open_checkout()
    from pipelines.systems.prefect.connection import api
    from pipelines.systems.prefect.signed_runs import sign

    with api() as client:
        sign(client, UUID(given_run()))
    execute()


if __name__ == "__main__":
    main()

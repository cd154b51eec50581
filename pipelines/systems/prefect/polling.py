"""The process in which Prefect's own worker polls.

`python -m pipelines.systems.prefect.polling POOL` starts it.

One run at a time: a run that is due meanwhile waits, and of several the newest is taken.
"""

from __future__ import annotations

import asyncio
import os
import sys

from pipelines.systems.processes import end_with_keeper


def main(pool: str) -> None:
    """Take scheduled runs from a pool until told to end or left alone."""
    end_with_keeper()
    from prefect.utilities.processutils import setup_signal_handlers_worker
    from prefect.workers.process import ProcessWorker

    setup_signal_handlers_worker(os.getpid(), "the worker", _quiet)
    worker = ProcessWorker(work_pool_name=pool, limit=1, create_pool_if_not_found=False)
    try:
        asyncio.run(worker.start(printer=_quiet))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("worker: told to end", file=sys.stderr)


def _quiet(*_words: object) -> None:
    """Take Prefect's greetings; `prong worker` says what matters."""


if __name__ == "__main__":
    main(sys.argv[1])

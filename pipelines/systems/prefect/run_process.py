"""The process that a worker starts for one run. Prefect's own engine does the work."""

from __future__ import annotations

import os
import runpy


def given_run() -> str:
    """Return Prefect's id of the run that the worker started this process for."""
    return os.environ["PREFECT__FLOW_RUN_ID"]


def execute() -> None:
    """Execute that run to its end, and end this process as it ends."""
    runpy.run_module("prefect.engine", run_name="__main__")

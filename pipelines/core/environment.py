"""Environment variables of Prefect, DVC and others, set before any of them is imported.

Each system reads its settings from the environment at import time. Values that the user has set are
kept. The others switch off logs and telemetry, keep stores and caches inside the checkout, and set
short timeouts. MLflow's are set where it is imported (`pipelines/systems/mlflow`).
"""

from __future__ import annotations

import os
from contextlib import suppress

from pipelines.core import params_file
from pipelines.core.config import Params
from pipelines.core.paths import Layout

RECORD = "PRONG_STAGE_RECORD"
"""Environment variable: the file in which a stage records that it ran and how it ended."""

AFRESH = "PRONG_AFRESH"
"""Environment variable: not empty if the stage was forced: a finished training is then not used
again. An interrupted training still continues."""


_QUIET = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}
_CACHES = {
    "DVC_SITE_CACHE_DIR": "dvc",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
}
"""Caches that would be in the home or temporary directory → folder in the state directory."""


def set_up(layout: Layout) -> None:
    """Set every variable that the user has not set."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name, folder in _CACHES.items():
        os.environ.setdefault(name, str(layout.state / folder))
    if "PREFECT_HOME" not in os.environ:
        home = layout.state / "prefect"
        os.environ["PREFECT_HOME"] = str(home)
        with suppress(OSError):  # a checkout that cannot be written to can still answer
            home.mkdir(parents=True, exist_ok=True)  # Prefect does not make parents


def open_checkout() -> tuple[Layout, Params]:
    """Set the environment; return the checkout of the working directory and its parameters.

    Raises:
        UserError: If this is not a checkout, or a parameter is wrong.
    """
    layout = Layout.find()
    set_up(layout)
    return layout, params_file.load(layout.params)

"""Environment variables of Prefect, DVC, git and others, set before any of them is imported.

Each system reads its settings from the environment at import time. Values that the user has set are
kept. The others switch off logs and telemetry, keep stores and caches inside the checkout, and set
short timeouts. MLflow's are set where it is imported (`pipelines/systems/mlflow`).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from pipelines.core import params_file
from pipelines.core.config import Params
from pipelines.core.paths import HOME, Layout
from pipelines.core.private import private_folder

RECORD = "PRONG_STAGE_RECORD"
"""Environment variable: the file in which a stage records that it ran and how it ended."""

AFRESH = "PRONG_AFRESH"
"""Environment variable: not empty if the stage was forced: a finished training is then not used
again. An interrupted training still continues."""

PYTHON = "PRONG_PYTHON"
"""Environment variable: the interpreter that `dvc.yaml` runs the stages with."""

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
    "PRONG_ENGINE_CACHE": "engines",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
}
"""Caches that would be in the home or temporary directory → folder in the state directory."""


ONE_REPOSITORY = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
)
"""Variables by which git sends its hooks, and what they start, to one repository: those that `git
rev-parse --local-env-vars` lists, but for GIT_CONFIG_COUNT, which only people set (safe.directory
in a container) and which names no repository."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def forget_repository(environment: MutableMapping[str, str]) -> None:
    """Remove what would send git and DVC to another repository than the one they stand in."""
    for name in ONE_REPOSITORY:
        environment.pop(name, None)


def _reach_loopback_directly() -> None:
    """Add this machine's own addresses to what is not asked for through a proxy."""
    given = {name: os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")}
    for name, value in given.items():
        listed = [part.strip() for part in (value or "".join(given.values())).split(",")]
        if "*" not in listed:  # that is all of them, but only if it stands alone
            os.environ[name] = ",".join(dict.fromkeys([*filter(None, listed), *_LOOPBACK]))


def set_up(layout: Layout) -> None:
    """Make the state directory private, and set every variable that the user has not set.

    Raises:
        UserError: If the state directory belongs to another user.
        OSError: If the disk does not take it.
    """
    forget_repository(os.environ)
    _reach_loopback_directly()
    private_folder((layout.root / HOME).parent)  # before what it says is believed
    private_folder(layout.state)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name, folder in _CACHES.items():
        os.environ.setdefault(name, str(layout.state / folder))
    if "PREFECT_HOME" not in os.environ:
        home = layout.state / "prefect"
        os.environ["PREFECT_HOME"] = str(home)
        if os.access(layout.state, os.W_OK):  # what only reads needs no Prefect
            home.mkdir(exist_ok=True)  # Prefect does not make parents


def open_checkout() -> tuple[Layout, Params]:
    """Set the environment; return the checkout of the working directory and its parameters.

    Raises:
        UserError: If this is not a checkout, its state directory belongs to another user, or a
            parameter is wrong.
    """
    layout = Layout.find()
    set_up(layout)
    return layout, params_file.load(layout.params)


def open_model(name: str | None) -> tuple[Layout, str]:
    """Set the environment; return the checkout and the registered model that is meant.

    Args:
        name: What the user named; then `params.yaml` need not be valid.

    Raises:
        UserError: If this is not a checkout, or no name is given and a parameter is wrong.
    """
    layout = Layout.find()
    set_up(layout)
    return layout, name or params_file.load(layout.params).model_name

"""Shared by all tests: an environment in which nothing leaves a temporary folder."""

from __future__ import annotations

import os
import tempfile

# Before torch or MLflow is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
_dvc = os.path.join(tempfile.gettempdir(), f"prong-dvc-{os.geteuid()}")  # else in /var/tmp
for _place in (_dvc, f"{_dvc}/repo"):  # DVC would make them with mode 0777
    os.makedirs(_place, mode=0o700, exist_ok=True)
os.environ.setdefault("DVC_SITE_CACHE_DIR", _dvc)
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), "prong-matplotlib"))
for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME"):
    os.environ.pop(name, None)
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "prong-hypothesis")
)

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Loaded machines draw slowly; that says nothing about the code under test.
settings.register_profile(
    "prong", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("prong")


@pytest.fixture(autouse=True)
def _sigterm_as_before() -> Iterator[None]:
    """Undo what a command that was called as a function does to this process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if signal.getsignal(signal.SIGTERM) is not before:
        signal.signal(signal.SIGTERM, before)


LONGEST = (
    *("test_kills", "test_worker", "test_crashes"),  # minutes, in `make test-full`
    *("test_main_job", "test_supervision", "test_launch", "test_faulty_versions", "test_ranks"),
    *("test_resume", "test_promotion", "test_gates", "test_server", "test_versioning"),
)
"""Modules that are begun first, so that no process works on one of them alone in the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist keep the order below; by itself it begins with the most tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest modules first and the many short ones of the library last.

    The order within a module stays. Last also since a process has one fork server: that of
    `fork_server` has imported what the library's tests need, and not the other way round.
    """
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: (
            order.get(item.path.stem, len(order)),
            item.path.parent.name == "prong",
            item.path.stem != "test_sharing",
        )
    )

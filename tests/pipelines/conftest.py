"""What tests share: databases begin as copies of one and do not wait for the disk."""

from __future__ import annotations

from pathlib import Path

import known_digits
import pytest
import unsynchronised

from pipelines.core.paths import Layout

unsynchronised.sqlite()
known_digits.remember()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker: str) -> Path:
    """A folder for what is made once for all tests, and copied."""
    base = tmp_path_factory.getbasetemp()
    return base if worker == "master" else base.parent


@pytest.fixture(scope="session")
def worker(request: pytest.FixtureRequest) -> str:
    """The name of this process among those that share the tests."""
    return str(getattr(request.config, "workerinput", {}).get("workerid", "master"))


@pytest.fixture(scope="session")
def database(shared: Path) -> Path:
    """An empty MLflow database: the first migration takes seconds."""
    from pipelines.systems import mlflow as tracking

    layout = Layout(shared / "database")
    tracking.connect(layout)  # makes it, whole, in one of the processes
    return layout.state / "mlflow.db"

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import Checkout, prepare_digits

from pipelines.layout import Layout


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
    from pipelines import tracking

    layout = Layout(shared / "database")
    tracking.connect(layout)  # makes it, whole, in one of the processes
    return layout.state / "mlflow.db"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 real digits as `prepare` leaves them."""
    return prepare_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def layout(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """An empty checkout with a database of its own."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    found = Layout(tmp_path / "checkout")
    found.state.mkdir(parents=True)
    shutil.copy(database, found.state / "mlflow.db")
    return found


@pytest.fixture
def checkout(layout: Layout, digits: Path) -> Callable[..., Checkout]:
    """Bring the checkout to where its stages have run; again for another model."""
    shutil.copytree(digits, layout.prepared)

    def make(noise: float = 0.0, seed: int = 0) -> Checkout:
        return Checkout.make(layout, noise, seed)

    return make

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from finished_checkout import FinishedCheckout, list_few_packages, prepare_digits
from judged_here import judged_here
from object_store import object_store
from postgres import Postgres, postgres
from registries import PostgresDatabases, Registries, Registry, SqliteFiles, checkouts
from released_checkout import moved, put_away
from starts import Starts

from pipelines.core.paths import Layout
from pipelines.gates import judging
from pipelines.release.promote import promote
from pipelines.release.register import register

__all__ = ["moved", "object_store", "postgres", "put_away"]  # fixtures


@pytest.fixture(scope="session", autouse=True)
def _few_packages() -> None:
    list_few_packages()


@pytest.fixture(scope="session", autouse=True)
def _judged_in_this_process() -> Iterator[None]:
    """Judge without a process of its own, whose start takes a second.

    `test_judging.py`, `test_commands.py` and the main job judge as a user does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "run_confined", judged_here)
        yield


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
def checkout(layout: Layout, digits: Path) -> Callable[..., FinishedCheckout]:
    """Bring the checkout to where its stages have run; again for another model."""
    shutil.copytree(digits, layout.prepared)

    def make(noise: float = 0.0, seed: int = 0) -> FinishedCheckout:
        return FinishedCheckout.make(layout, noise, seed)

    return make


@pytest.fixture(scope="session")
def starts(tmp_path_factory: pytest.TempPathFactory, database: Path, digits: Path) -> Starts:
    """Checkouts that begin with versions."""
    return Starts(tmp_path_factory.mktemp("starts"), database, digits)


@pytest.fixture
def registered(starts: Starts, layout: Layout) -> FinishedCheckout:
    """The checkout with one version that was never judged."""
    return starts.registered(layout)


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> dict[str, Path]:
    """Checkouts with three models, A, B and C."""
    return checkouts(tmp_path_factory.mktemp("checkouts"), digits)


@pytest.fixture(scope="session")
def on_sqlite(
    tmp_path_factory: pytest.TempPathFactory,
    database: Path,
    roots: dict[str, Path],
) -> Registries:
    """Registries on sqlite."""
    folder = tmp_path_factory.mktemp("sqlite")
    shutil.copy(database, folder / "migrated")
    artifacts = (folder / "artifacts").as_uri()
    return Registries(SqliteFiles(folder), artifacts, roots, folder / "output")


@pytest.fixture(scope="session")
def on_postgres(
    tmp_path_factory: pytest.TempPathFactory,
    postgres: Postgres,
    roots: dict[str, Path],
) -> Registries:
    """Registries on PostgreSQL."""
    folder = tmp_path_factory.mktemp("postgresql")
    artifacts = (folder / "artifacts").as_uri()
    uri = postgres.create("migrated")
    Registry({"MLFLOW_TRACKING_URI": uri}, roots, folder).look()  # MLflow makes its tables
    return Registries(PostgresDatabases(postgres), artifacts, roots, folder / "output")


@pytest.fixture(scope="session")
def refused(tmp_path_factory: pytest.TempPathFactory, database: Path, digits: Path) -> Layout:
    """A checkout whose version 1 is champion and whose version 2 was refused, to be copied."""
    layout = Layout(tmp_path_factory.mktemp("refused") / "checkout")
    layout.state.mkdir(parents=True)
    shutil.copy(database, layout.state / "mlflow.db")
    shutil.copytree(digits, layout.prepared)
    for number, noise in ((1, 0.0), (2, 200.0)):
        made = FinishedCheckout.make(layout, noise, 0)
        register(layout, made.params, None)
        assert promote(layout, made.params, number).promoted == (number == 1)
    return layout

"""Real registries for real servers: releases are made in this process, servers in their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from finished_checkout import list_few_packages, prepare_digits
from judged_here import judged_here
from live_server import Server, serving
from numpy.typing import NDArray
from starts import Starts

from pipelines.core.paths import Layout
from pipelines.data.prepared import load_split
from pipelines.gates import judging


@pytest.fixture(scope="session", autouse=True)
def _quick_releases() -> Iterator[None]:
    list_few_packages()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "run_confined", judged_here)
        yield


@pytest.fixture(scope="session")
def starts(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Starts:
    """Checkouts that begin with versions."""
    digits = prepare_digits(tmp_path_factory.mktemp("digits"))
    return Starts(tmp_path_factory.mktemp("starts"), database, digits)


@pytest.fixture(scope="session")
def checkouts(
    starts: Starts, database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Layout]:
    """Make checkouts in which version 1 was champion and version 2 is."""

    def make() -> Layout:
        layout = Layout(tmp_path_factory.mktemp("served") / "checkout")
        layout.state.mkdir(parents=True)
        shutil.copy(database, layout.state / "mlflow.db")
        starts.released(layout, 0.0, 1.0)
        return layout

    return make


@pytest.fixture(scope="module")
def server(checkouts: Callable[[], Layout]) -> Iterator[Server]:
    """One server for a module; it asks the registry five times a second."""
    with serving(checkouts(), "--poll", "0.2") as found:
        yield found


@pytest.fixture(scope="module")
def images(server: Server) -> NDArray[np.uint8]:
    """Two real digits."""
    found: NDArray[np.uint8] = load_split(server.layout.prepared, "test").inputs[:2]
    return found

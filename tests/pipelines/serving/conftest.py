from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from handmade_models import classifier, fragile, reconstruction, table
from served import Running, loaded, serving


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = (classifier, table, reconstruction, fragile)
    return {make.__name__: make(folder / f"{make.__name__}.onnx") for make in made}


@pytest.fixture(scope="package")
def digits(models: dict[str, Path]) -> Iterator[Running]:
    with serving(loaded(models["classifier"]), max_batch=8, max_body=200_000) as running:
        yield running


@pytest.fixture(scope="package")
def houses(models: dict[str, Path]) -> Iterator[Running]:
    with serving(loaded(models["table"])) as running:
        yield running


@pytest.fixture(scope="package")
def pictures(models: dict[str, Path]) -> Iterator[Running]:
    with serving(loaded(models["reconstruction"])) as running:
        yield running

"""One real Prefect server for the quick tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from postgres import postgres  # noqa: F401
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from small_checkout import make
from webhook import receiver  # noqa: F401

from pipelines.core.paths import Layout
from pipelines.systems.prefect.server import prefect_api


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    """A small checkout with a Prefect server in a home of its own."""
    layout = Layout(make(tmp_path_factory.mktemp("schedule") / "job").root)
    home = layout.state / "prefect"
    home.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("PREFECT_LOGGING_LEVEL", "CRITICAL")
        with prefect_api(layout) as wait:
            settings = {
                PREFECT_API_URL: os.environ["PREFECT_API_URL"],
                PREFECT_API_AUTH_STRING: os.environ["PREFECT_API_AUTH_STRING"],
                PREFECT_LOGGING_TO_API_ENABLED: False,
            }
            wait()
            with temporary_settings(settings):
                yield layout

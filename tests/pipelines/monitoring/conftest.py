"""What tests of the request log and its monitor share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from logged_requests import Opened

from pipelines.serving.request_log import RequestLog


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Return a function that opens logs, which are closed after the test."""
    with ExitStack() as ending:

        def open_log(folder: Path, **settings: Any) -> RequestLog:
            log = RequestLog(folder, **settings)
            ending.callback(log.close)
            return log

        yield open_log

"""Records of a request log for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipelines.serving.request_log import LoggedRequest, RequestLog, Shadow
from pipelines.serving.request_records import LogReader

Opened = Callable[..., RequestLog]
ONE = LoggedRequest(
    time="2026-11-02T10:00:00.123+00:00",
    request="r-1",
    model="digits-cnn",
    version=3,
    sha256="ab" * 32,
    examples=2,
    seconds=0.00123456,
    answers=[[1.25, -2.5], [0.1234567, 1e-9]],
    labels=[0, 1],
    drift=[0.5, 7.0],
    shadow=Shadow(4, 0.5),
)


def some(count: int, start: int = 0) -> list[LoggedRequest]:
    return [replace(ONE, request=f"r-{start + at}") for at in range(count)]


def ids(reader: LogReader) -> list[str]:
    return [record.request for record in reader]

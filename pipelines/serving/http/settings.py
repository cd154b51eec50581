"""What the server is told at its start."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.core.errors import UserError

if TYPE_CHECKING:
    from pipelines.systems.onnx.runtime import Provider

_LEAST_KEY = 16


@dataclass(frozen=True)
class ServeSettings:
    """Settings of the server; options of the command line have the same names.

    Attributes:
        host: Address to listen on; loopback by default.
        port: 0: any free one.
        provider: Where the model runs.
        threads: Of ONNX Runtime; None: one for each processor that this process may use.
        max_batch: Most examples in one call of the model. A larger request is answered in parts.
        batch_delay_ms: How long the first request of a batch waits for others, milliseconds. While
            one batch runs the next one gathers anyway; 0: an idle server never waits.
        queue: Requests that may wait; one more is answered by 429.
        max_body: Most bytes of a request, also of what it unpacks to.
        api_key: That each request must bring; None: none is asked for.
        log_share: Of the requests that the request log keeps, 0 to 1.
        drift_rate: Examples a second that are scored for drift, at most, of those logged.
        log_inputs: Whether the request log keeps the inputs too.
        shadow: Share of the requests that the challenger sees, 0 to 1.
        drain: Seconds that requests in flight may take at the end.
        poll: Seconds between two looks at the registry.

    Raises:
        UserError: Naming the first setting that is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    provider: Provider = "auto"
    threads: int | None = None
    max_batch: int = 64
    batch_delay_ms: float = 0.0
    queue: int = 256
    max_body: int = 32 * 2**20
    api_key: bytes | None = field(default=None, repr=False)
    log_share: float = 1.0
    drift_rate: float = 20.0
    log_inputs: bool = False
    shadow: float = 0.0
    drain: float = 30.0
    poll: float = 2.0

    def __post_init__(self) -> None:
        _within("port", self.port, 0, 65535)
        if self.threads is not None:
            _within("threads", self.threads, 1, 1024)
        _within("max_batch", self.max_batch, 1, 4096)
        _within("batch_delay_ms", self.batch_delay_ms, 0, 1000)
        _within("queue", self.queue, 1, 100_000)
        _within("max_body", self.max_body, 1024, 2**30)
        _within("log_share", self.log_share, 0, 1)
        _within("drift_rate", self.drift_rate, 0, 1e6)
        _within("shadow", self.shadow, 0, 1)
        _within("drain", self.drain, 0, 3600)
        _within("poll", self.poll, 0.1, 3600)
        if self.api_key is not None and not _usable(self.api_key):
            raise UserError(
                f"api_key: needed are at least {_LEAST_KEY} printable ASCII characters, no blanks"
            )


def _within(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise UserError(f"{name} = {value}: allowed are {least} to {most}")


def _usable(key: bytes) -> bool:
    return len(key) >= _LEAST_KEY and all(33 <= byte <= 126 for byte in key)

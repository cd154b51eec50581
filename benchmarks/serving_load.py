"""A client that puts load on a server and says how long answers took.

`python -m benchmarks.serving_load` reads a `Load` as JSON from standard input and prints a
`Measured` as JSON. It is a process of its own, so that its own work is not counted as the server's.
Connections are kept alive. One client measures latency by a blocking socket; several share a loop.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Load:
    """What to ask.

    Attributes:
        port: On loopback.
        path: Of the request.
        headers: All but host and length.
        body: In base64.
        clients: That ask at the same time, each again as soon as it is answered.
        requests: In all; 0: until `seconds` are over.
        seconds: How long to ask, where `requests` is 0.
    """

    port: int
    path: str
    headers: dict[str, str]
    body: str
    clients: int = 1
    requests: int = 0
    seconds: float = 0.0

    def raw(self) -> bytes:
        """Return the request as bytes."""
        body = base64.b64decode(self.body)
        lines = [f"POST {self.path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body


@dataclass(frozen=True)
class Measured:
    """What came back.

    Attributes:
        answered: Requests that were answered by 200.
        failed: All others, those on broken connections too.
        seconds: From the first request to the last answer.
        p50: Milliseconds.
        p99: Milliseconds.
        said: The first answer that was not 200; empty if there was none.
    """

    answered: int
    failed: int
    seconds: float
    p50: float
    p99: float
    said: str


def cut(held: bytes) -> tuple[int, bytes, bytes] | None:
    """Return status and body of the first answer in a stream, and the rest; None if none is whole.

    Raises:
        ValueError: If the answer has no length.
    """
    end = held.find(b"\r\n\r\n")
    if end < 0:
        return None
    found = _LENGTH.search(held, 0, end + 2)
    if found is None:
        raise ValueError("an answer without Content-Length")
    whole = end + 4 + int(found[1])
    if len(held) < whole:
        return None
    return int(held[9:12]), held[end + 4 : whole], held[whole:]


@dataclass
class _Tally:
    """What is counted while load is put on."""

    load: Load
    begun: int = 0
    failed: int = 0
    said: str = ""
    times: list[float] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def more(self) -> bool:
        """Whether to ask again; counts the request."""
        if self.load.requests:
            more = self.begun < self.load.requests
        else:
            more = time.perf_counter() < self.start + self.load.seconds
        self.begun += more
        return more

    def count(self, status: int, body: bytes, began: float) -> None:
        """Count an answer."""
        if status == 200:
            self.times.append(time.perf_counter() - began)
        else:
            self.fail(f"{status} {body[:200].decode(errors='replace')}")

    def fail(self, said: str) -> None:
        """Count a request that was not answered well."""
        self.failed += 1
        self.said = self.said or said

    def measured(self) -> Measured:
        """Return what came of it."""
        seconds = time.perf_counter() - self.start
        p50, p99 = 1000 * np.quantile(self.times or [float("nan")], [0.5, 0.99])
        return Measured(len(self.times), self.failed, seconds, float(p50), float(p99), self.said)


class _Client(asyncio.Protocol):
    def __init__(self, tally: _Tally, raw: bytes, ended: Callable[[], None]) -> None:
        self._tally, self._raw, self._ended, self._held = tally, raw, ended, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport, self._waits = cast(asyncio.Transport, transport), False
        self._ask()

    def _ask(self) -> None:
        if not self._tally.more():
            self._transport.close()
            return
        self._waits, self._began = True, time.perf_counter()
        self._transport.write(self._raw)

    def data_received(self, data: bytes) -> None:
        self._held += data
        answer = cut(self._held)
        if answer is not None:
            status, body, self._held = answer
            self._waits = False
            self._tally.count(status, body, self._began)
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waits:
            self._tally.fail(f"connection lost: {error}")
        self._ended()


async def _many(load: Load) -> Measured:
    loop, tally, raw = asyncio.get_running_loop(), _Tally(load), load.raw()
    left, done = load.clients, loop.create_future()

    def ended() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set_result(None)

    for _ in range(load.clients):
        await loop.create_connection(lambda: _Client(tally, raw, ended), "127.0.0.1", load.port)
    await done
    return tally.measured()


def _one(load: Load) -> Measured:
    raw, held = load.raw(), b""
    with socket.create_connection(("127.0.0.1", load.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tally = _Tally(load)
        while tally.more():
            began = time.perf_counter()
            connection.sendall(raw)
            while (answer := cut(held)) is None:
                data = connection.recv(2**16)
                if not data:
                    tally.fail("connection lost")
                    return tally.measured()
                held += data
            status, body, held = answer
            tally.count(status, body, began)
    return tally.measured()


def begin(load: Load) -> subprocess.Popen[bytes]:
    """Begin to put load on a server, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving_load"],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(load)).encode())
    process.stdin.close()
    return process


def result(process: subprocess.Popen[bytes]) -> Measured:
    """Wait for what `begin` began."""
    assert process.stdout is not None
    said = process.stdout.read()
    if process.wait():
        raise RuntimeError(f"the client ended with {process.returncode}")
    return Measured(**json.loads(said))


def measure(load: Load) -> Measured:
    """Put load on a server, in a process of its own, and wait for the end."""
    return result(begin(load))


def main() -> None:
    """Put the load on that standard input describes."""
    load = Load(**json.load(sys.stdin))
    if load.clients == 1:
        found = _one(load)
    else:
        import uvloop

        found = uvloop.run(_many(load))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()

"""Many clients that keep their connections: raw sockets, binary tensors, an id for each request.

As a program, `many_clients.py PORT MODEL IMAGES.npy CLIENTS`, it works until its input ends, and
then prints what came back as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

_LOST = (ConnectionError, asyncio.IncompleteReadError, OSError)


@dataclass
class Report:
    """What came back.

    Attributes:
        answers: Id, version, when it came (`time.time()`) and seconds of each good answer.
        failures: Id, reason and begin of each other request.
    """

    answers: list[tuple[str, int, float, float]] = field(default_factory=list)
    failures: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def versions(self) -> Counter[int]:
        """Answers by version."""
        return Counter(version for _, version, _, _ in self.answers)

    def seconds(self, begin: float = 0.0, end: float = float("inf")) -> NDArray[np.float64]:
        """Return the seconds of the answers that came within a span of time."""
        return np.array([took for _, _, at, took in self.answers if begin <= at <= end])


class Load:
    """Clients in a thread of their own, until told to stop."""

    def __init__(self, port: int, model: str, images: NDArray[np.uint8], clients: int) -> None:
        self.report = Report()
        self._port, self._clients = port, clients
        self._numbers, self._stop = count(), False
        shape = list(images.shape)
        told = {"name": "images", "datatype": "UINT8", "shape": shape}
        told["parameters"] = {"binary_data_size": images.nbytes}
        header = json.dumps({"inputs": [told], "parameters": {"binary_data_output": True}}).encode()
        self._body = header + images.tobytes()
        self._head = (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Length: {len(self._body)}\r\n"
            f"Inference-Header-Content-Length: {len(header)}\r\n"
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> None:
        """Let the clients begin."""
        self._thread.start()

    def stop(self) -> Report:
        """Let each client end its request; return what came back."""
        self._stop = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.report

    def wait_for(self, answers: int, patience: float = 60.0) -> None:
        """Wait until so many more answers came."""
        wanted, deadline = len(self.report.answers) + answers, time.time() + patience
        while len(self.report.answers) < wanted:
            assert time.time() < deadline, self.report.failures[:3]
            time.sleep(0.02)

    async def _run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._clients)))

    async def _client(self) -> None:
        reader: asyncio.StreamReader | None = None
        writer: asyncio.StreamWriter | None = None
        while not self._stop:
            name, began = f"load-{next(self._numbers)}", time.time()
            try:
                if reader is None or writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(f"{self._head}X-Request-Id: {name}\r\n\r\n".encode() + self._body)
                status, closes, version = await _answer(reader)
            except _LOST as error:
                self.report.failures.append((name, repr(error), began))
                if writer is not None:
                    writer.close()
                reader = writer = None
                await asyncio.sleep(0.05)
                continue
            now = time.time()
            if status == 200:
                self.report.answers.append((name, version, now, now - began))
            else:
                self.report.failures.append((name, str(status), began))
            if closes:
                writer.close()
                reader = writer = None
        if writer is not None:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool, int]:
    """Return status, whether the connection closes, and the version that answered."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
    body = await reader.readexactly(int(headers["content-length"]))
    code, version = int(status.split()[1]), 0
    if code == 200:
        length = int(headers.get("inference-header-content-length", len(body)))
        version = int(json.loads(body[:length])["model_version"])
    return code, headers.get("connection", "").lower() == "close", version


@contextmanager
def load(port: int, model: str, images: NDArray[np.uint8], clients: int = 8) -> Iterator[Load]:
    """Yield clients that are at work; they have stopped at the end."""
    made = Load(port, model, images, clients)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def main(port: str, model: str, images: str, clients: str) -> None:
    """Be the program."""
    with load(int(port), model, np.load(images), int(clients)) as made:
        for _ in sys.stdin:  # a line asks how many answers there are
            print(len(made.report.answers), flush=True)
        report = made.stop()
    print(json.dumps([report.answers, report.failures]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

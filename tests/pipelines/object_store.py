"""A real S3 server of the tests' own, on a free port of loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest


@dataclass(frozen=True)
class ObjectStore:
    """A running S3 server.

    Attributes:
        url: Its address.
        settings: Environment variables that lead clients to it.
    """

    url: str
    settings: dict[str, str]

    def bucket(self, name: str) -> str:
        """Make a bucket and return its address."""
        urlopen(Request(f"{self.url}/{name}", method="PUT"), timeout=60).close()
        return f"s3://{name}"


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """An S3 server for this session."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("object-store") / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env={**os.environ, "PYTHONWARNINGS": "default"},
            stdout=out,
            stderr=out,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(server, url, log)
        yield ObjectStore(
            url,
            {
                "AWS_ENDPOINT_URL": url,
                "MLFLOW_S3_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            },
        )
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urlopen(f"{url}/moto-api/", timeout=10).close()
        except (URLError, ConnectionError, TimeoutError):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
            continue
        return

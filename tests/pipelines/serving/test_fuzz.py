"""Wrong bodies by the thousand: each is refused, the server lives, its memory stays flat."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from pathlib import Path

import pytest
from served import Running, process
from wrong_requests import Fuzzer, Sent

GROWTH = 64 * 2**20
"""Bytes by which a server may be larger after all of it than after the first tenth."""


class Client:
    """Sends requests over one connection for as long as the server keeps it."""

    def __init__(self, running: Running) -> None:
        self.port = running.port
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, sent: Sent) -> tuple[int, bytes]:
        headers = {key: value.encode("latin-1", "replace") for key, value in sent.headers.items()}
        try:
            self.connection.request("POST", sent.path, sent.body, headers)
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except (ConnectionError, http.client.HTTPException):
            # Refused and closed while it was still being sent: 431 alone may do so.
            self.connection.close()
            assert sum(map(len, sent.headers.values())) > 60_000, sent
            return 431, b'{"error": "closed"}'

    def close(self) -> None:
        self.connection.close()


def refused(running: Running, table: bool, least: int, seed: int) -> Counter[int]:
    """Send wrong requests until so many were refused; return how often each status came."""
    found: Counter[int] = Counter()
    client = Client(running)
    for sent in Fuzzer(seed, table):
        status, body = client.ask(sent)
        found[status] += 1
        assert status == 200 or 400 <= status < 500, (status, body, sent)
        if status != 200:
            assert json.loads(body)["error"], sent
        if sum(found.values()) - found[200] >= least:
            break
    client.close()
    return found


def test_some_hundred_wrong_requests(digits: Running, houses: Running) -> None:
    found: Counter[int] = Counter()
    for running, table in ((digits, False), (houses, True)):
        found += refused(running, table, 150, seed=1)
        assert running.ask("/v2/health/ready").status == 200
    assert found[200] < 120  # what was drawn may happen to be sound
    assert {400, 403, 413, 415, 422, 431} <= set(found)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["classifier", "table"])
def test_ten_thousand_wrong_requests(models: dict[str, Path], kind: str) -> None:
    table = kind == "table"
    with process(models[kind]) as (running, pid):
        refused(running, table, 1_000, seed=2)
        before = resident(pid)
        found = refused(running, table, 10_000, seed=3)
        assert resident(pid) - before < GROWTH
        assert running.ask("/v2/health/ready").status == 200
        print(kind, dict(found), f"{before >> 20} to {resident(pid) >> 20} MiB")

"""Who may ask, and what connections may do."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import numpy as np
import pytest
from questions import question
from served import Running, loaded, serving

from pipelines.core.errors import UserError
from pipelines.serving.http import bounded
from pipelines.serving.http.guard import is_loopback
from pipelines.serving.http.settings import ServeSettings

HEAD, BEHIND = question({"images": np.zeros((1, 1, 4, 4), np.uint8)}, binary=True)
KEY = b"0123456789abcdef"


def test_a_key_is_asked_for_where_there_is_one(models: dict[str, Path]) -> None:
    with serving(loaded(models["classifier"]), api_key=KEY) as running:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert running.ask(path).status == 200
        sent = {"Inference-Header-Content-Length": str(len(HEAD))}
        path = "/v2/models/digits/infer"
        good = [
            {"Authorization": f"Bearer {KEY.decode()}"},
            {"authorization": f"bearer {KEY.decode()}"},
            {"X-API-Key": KEY.decode()},
        ]
        for one in good:
            assert running.ask(path, HEAD + BEHIND, sent | one).status == 200
            assert running.ask("/metrics", headers=one).status == 200
        wrong = [
            {},
            {"Authorization": KEY.decode()},
            {"Authorization": f"Basic {KEY.decode()}"},
            {"Authorization": f"Bearer {KEY.decode()[:-1]}"},
            {"X-API-Key": ""},
            {"X-API-Key": "ü" * 16},
        ]
        for one in wrong:
            for reply in (
                running.ask(path, HEAD + BEHIND, sent | one),
                running.ask("/predict", b"x", one),
                running.ask("/metrics", headers=one),
                running.ask("/openapi.json", headers=one),
            ):
                assert reply.status == 401
                assert reply.headers["www-authenticate"] == "Bearer"
                assert KEY.decode() not in reply.error


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8000"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
    ids=range(13),
)
def test_web_pages_do_not_reach_a_server_on_loopback(
    digits: Running, sent: dict[str, str], status: int
) -> None:
    for path, body in (("/health", None), ("/predict", b""), ("/v2", None)):
        reply = digits.ask(path, body, sent)
        assert reply.status == status or (status == 200 and reply.status == 400)


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("port", 70000, "port = 70000: allowed are 0 to 65535"),
        ("max_batch", 0, "max_batch = 0: allowed are 1 to 4096"),
        ("log_share", float("nan"), "log_share = nan: allowed are 0 to 1"),
        ("shadow", 1.5, "shadow = 1.5: allowed are 0 to 1"),
        ("queue", 0, "queue = 0: allowed are 1 to 100000"),
        ("threads", 0, "threads = 0: allowed are 1 to 1024"),
        ("api_key", b"short", "at least 16 printable ASCII characters"),
        ("api_key", b"0123456789 abcdef", "at least 16 printable ASCII characters"),
    ],
)
def test_settings_out_of_range(key: str, value: object, told: str) -> None:
    with pytest.raises(UserError) as raised:
        ServeSettings(**{key: value})  # type: ignore[arg-type]
    assert told in str(raised.value)
    assert "0123456789" not in repr(ServeSettings(api_key=KEY))


def talk(running: Running, *parts: bytes, pause: float = 0.0) -> bytes:
    """What a server says to bytes, until it closes the connection or says nothing more."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=2) as connection:
        said = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while more := connection.recv(65536):
                said += more
        except (TimeoutError, ConnectionError):
            pass
        return said


START = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"nonsense\r\n\r\n"], b"400"),
        ([b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 70_000, b"a" * 1000], b"431"),
        ([b"GET /v2 HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % n for n in range(9_000))], b"431"),
        ([b"GET /" + b"a" * 300_000], b"431"),
        ([START + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"], b"400"),
        ([START + b"Content-Length: -1\r\n\r\n"], b"400"),
        ([START + b"Connection: close\r\nContent-Length: 99999999999\r\n\r\n"], b"413"),
        ([START + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], b"400"),
        ([START + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 300_000], b"431"),
        ([b"CONNECT x:1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"], b"400"),
        (
            [
                b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade, close\r\n\r\n"
            ],
            b"200",
        ),
    ],
    ids=range(11),
)
def test_connections_that_misbehave(digits: Running, parts: list[bytes], status: bytes) -> None:
    said = talk(digits, *parts)
    assert said.startswith(b"HTTP/1.1 " + status), said[:200]
    assert digits.ask("/v2/health/ready").status == 200


def test_slow_headers_are_not_waited_for(digits: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "HEAD_SECONDS", 0.2)
    for parts in ([b""], [b"GET /v2 HTTP/1.1\r\nHost"]):
        said = talk(digits, *parts)
        assert said.startswith(b"HTTP/1.1 408"), said[:200]


def test_two_requests_in_one_packet(digits: Running) -> None:
    one = START + b"Content-Length: %d\r\nInference-Header-Content-Length: %d\r\n\r\n" % (
        len(HEAD + BEHIND),
        len(HEAD),
    )
    last = b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    said = talk(digits, (one + HEAD + BEHIND) * 2 + last)
    assert said.count(b"HTTP/1.1 200") == 3

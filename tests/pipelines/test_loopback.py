"""A guarded server on loopback answers to its owner and to its own pages alone."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.core.environment import set_up
from pipelines.core.paths import Layout
from pipelines.systems.loopback import listen, port_of

SERVER = """
import socket, sys
from pipelines.systems.loopback import Guard, port_of, serve
async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind.endswith("shutdown"):
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"reached"})
listener = socket.socket(fileno=int(sys.argv[1]))
serve(Guard(application, port_of(listener), credentials="prong:ä", open_path="/health"), listener)
"""
Answer = tuple[int, str]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listen(0) as listener:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(listener.fileno())], pass_fds=(listener.fileno(),)
        )
        yield port_of(listener)
        process.terminate()
        process.wait(timeout=30)


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


GOOD = basic("prong:ä")


def ask(port: int, method: str, path: str, headers: list[tuple[str, str]]) -> Answer:
    """Send a request with exactly these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value.replace("PORT", str(port)))
    connection.endheaders()
    answer = connection.getresponse()
    said = answer.status, answer.read().decode()
    connection.close()
    return said


OWN = ("Host", "127.0.0.1:PORT")
SECRET = ("Authorization", GOOD)


@pytest.mark.parametrize(
    "headers",
    [
        [OWN, SECRET],
        [("Host", "LocalHost:PORT"), SECRET],
        [OWN, SECRET, ("Origin", "http://127.0.0.1:PORT")],
        [OWN, SECRET, ("Origin", "http://localhost:PORT"), ("Sec-Fetch-Site", "cross-site")],
        [OWN, SECRET, ("Sec-Fetch-Site", "same-origin")],
        [OWN, ("Authorization", GOOD.replace("Basic", "basic"))],
    ],
)
def test_the_owner_is_answered(port: int, headers: list[tuple[str, str]]) -> None:
    assert ask(port, "POST", "/", headers) == (200, "reached")


def test_a_link_that_the_owner_follows_is_answered(port: int) -> None:
    fetch = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Dest", "document")]
    assert ask(port, "GET", "/", [OWN, SECRET, *fetch])[0] == 200
    assert ask(port, "POST", "/", [OWN, SECRET, *fetch])[0] == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([SECRET, ("Host", "evil.example:PORT")], 403),
        ([SECRET, ("Host", "127.0.0.1")], 403),
        ([SECRET, ("Host", "127.0.0.1:1")], 403),
        ([SECRET, ("Host", "127.0.0.1:PORT.evil.example")], 403),
        ([SECRET, OWN, ("Origin", "http://evil.example")], 403),
        ([SECRET, OWN, ("Origin", "http://127.0.0.1:1")], 403),
        ([SECRET, OWN, ("Origin", "https://127.0.0.1:PORT")], 403),
        ([SECRET, OWN, ("Origin", "null")], 403),
        ([SECRET, OWN, ("Origin", "")], 403),
        ([SECRET, OWN, ("Sec-Fetch-Site", "same-site")], 403),
        ([OWN], 401),
        ([OWN, ("Authorization", basic("prong:a"))], 401),
        ([OWN, ("Authorization", basic("prong:ä2"))], 401),
        ([OWN, ("Authorization", basic(""))], 401),
        ([OWN, ("Authorization", "Basic ä")], 401),
        ([OWN, ("Authorization", "Bearer prong:ä")], 401),
        ([OWN, SECRET, SECRET], 401),
    ],
)
def test_others_are_refused(port: int, headers: list[tuple[str, str]], status: int) -> None:
    found, said = ask(port, "POST", "/", headers)
    assert found == status
    assert "reached" not in said


def test_only_the_question_whether_it_is_there_needs_no_secret(port: int) -> None:
    assert ask(port, "GET", "/health", [OWN])[0] == 200
    assert ask(port, "POST", "/health", [OWN])[0] == 401
    assert ask(port, "GET", "/health/", [OWN])[0] == 401
    assert ask(port, "GET", "/health", [("Host", "evil.example")])[0] == 403


def test_a_refusal_asks_for_name_and_password_and_no_page_may_be_framed(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/")
    refused = connection.getresponse()
    refused.read()
    assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    connection.request("GET", "/", headers={"Authorization": GOOD})
    shown = connection.getresponse()
    shown.read()
    connection.close()
    assert shown.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert "Access-Control-Allow-Origin" not in shown.headers


FETCH = """
import json, sys, urllib.request
from pathlib import Path
import httpx, requests
from pipelines.core.environment import set_up
from pipelines.core.paths import Layout
set_up(Layout(Path(sys.argv[1])))
url = sys.argv[2]
print(json.dumps([
    requests.get(url, timeout=20).status_code,
    httpx.get(url, timeout=20).status_code,
    urllib.request.urlopen(url, timeout=20).status,
    urllib.request.proxy_bypass("proxy.example"),
    urllib.request.proxy_bypass("own.example"),
]))
"""


@pytest.mark.parametrize("given", [{}, {"NO_PROXY": "own.example"}])
def test_no_proxy_is_asked_for_what_is_on_loopback(
    port: int, tmp_path: Path, given: dict[str, str]
) -> None:
    with listen(0) as closed:  # nothing answers there
        proxy = f"http://127.0.0.1:{port_of(closed)}"
    names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")
    others = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, str(tmp_path), f"http://127.0.0.1:{port}/health"],
        env={**others, **dict.fromkeys(names, proxy), **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [200, 200, 200, False, bool(given)]


def test_a_proxy_that_is_asked_for_nothing_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    set_up(Layout(tmp_path))
    assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == ("*", "*")


def test_a_busy_port_gives_way_to_the_next_free_one(port: int) -> None:
    with listen(port, 50) as found:
        assert port < port_of(found) < port + 50
    with pytest.raises(OSError, match="in use"):
        listen(port)

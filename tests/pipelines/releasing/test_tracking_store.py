"""A store that is wrong, silent, damaged or full: said in words, and in seconds."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.files import write_text
from pipelines.core.paths import Layout
from pipelines.systems import mlflow as tracking

URI = "MLFLOW_TRACKING_URI"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "ftp://x", "mlflow.db"])
def test_a_wrong_store_is_named_with_what_is_allowed(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv(URI, uri)
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI = .*allowed: a server") as raised:
        tracking.connect(layout)
    assert repr(uri) in str(raised.value)


def test_a_silent_server_is_given_up_in_seconds(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv(URI, f"http://me:secret@127.0.0.1:{listener.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(Unavailable, match=r"timed out.*MLFLOW_TRACKING_URI") as raised:
            tracking.connect(layout)
    assert time.monotonic() - start < 15
    assert "secret" not in str(raised.value)


@contextmanager
def answers(status: int) -> Iterator[str]:
    """Serve one status whatever is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, UserError, "refused access"),
        (403, UserError, "refused access"),
        (404, UserError, "not MLflow"),
        (503, Unavailable, "does not answer"),
    ],
)
def test_what_a_server_says_instead(
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    kind: type[UserError],
    said: str,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answers(status) as uri:
        monkeypatch.setenv(URI, uri)
        with pytest.raises(kind, match=said) as raised:
            tracking.find_run(layout, "e", "ab")
    assert type(raised.value) is kind
    assert uri in str(raised.value)


def test_a_damaged_database_is_named_at_once(layout: Layout) -> None:
    (layout.state / "mlflow.db").write_bytes(b"no database" * 1000)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"mlflow\.db cannot be used: file is not a database"):
        tracking.connect(layout)
    assert time.monotonic() - start < 5


def test_an_older_mlflows_database_says_how_to_upgrade(layout: Layout) -> None:
    with sqlite3.connect(layout.state / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    connection.close()
    with pytest.raises(UserError, match="mlflow db upgrade"):
        tracking.connect(layout)


def test_a_place_that_takes_no_database_is_a_disk_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(URI, raising=False)
    write_text(tmp_path / "checkout/.prong", "a file where the folder should be")
    with pytest.raises(OSError, match=r"\.prong"):
        tracking.connect(Layout(tmp_path / "checkout"))

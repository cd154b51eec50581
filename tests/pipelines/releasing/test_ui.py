from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from pipelines.cli.ui import Page, _wait, listen_near, pages, serve_pages
from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.systems import mlflow as tracking
from pipelines.systems.loopback import port_of
from pipelines.systems.secrets import USER, secret


@pytest.fixture
def busy() -> int:
    """A port that something listens on, with free ones after it."""
    listener = socket.create_server(("127.0.0.1", 0))
    yield listener.getsockname()[1]  # type: ignore[misc]
    listener.close()


def test_a_busy_port_gives_way_to_the_next_free_one(busy: int) -> None:
    with listen_near(busy) as first, listen_near(busy) as second:
        assert busy < port_of(first) < port_of(second) < busy + 50


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_number_that_is_not_a_port_is_named(port: int) -> None:
    with pytest.raises(UserError, match=rf"port {port}: must be 1 to 65535"):
        listen_near(port)


def test_servers_named_by_settings_are_shown_not_started(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow.example:5000")
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    serve_pages(layout, mlflow_port=5000, prefect_port=4200)
    out = capsys.readouterr().out
    assert "http://me:***@mlflow.example:5000 " in out
    assert "http://prefect.example:4200 " in out
    assert not (layout.state / "ui").exists()


def test_a_server_that_ends_at_once_leaves_its_last_words(layout: Layout) -> None:
    log = layout.state / "mlflow.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "no_such_module"]
        process = subprocess.Popen(command, stdout=file, stderr=file)
    page = Page("MLflow", "http://127.0.0.1:9", "", process, log)
    with pytest.raises(Unavailable, match=r"(?s)ended with exit code 1.*No module named") as raised:
        _wait(page, time.monotonic() + 30)
    assert "mlflow.log" in str(raised.value)


def test_a_page_that_runs_elsewhere_is_not_waited_for() -> None:
    start = time.monotonic()
    _wait(Page("MLflow", "http://127.0.0.1:9", ""), 60.0)
    assert time.monotonic() - start < 30


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_pages_answer_and_end_with_the_command(
    layout: Layout, number: signal.Signals, busy: int, tmp_path: Path
) -> None:
    client = tracking.connect(layout)
    tracking.experiment_id(layout, client, "seen")
    code = (
        # A shell starts what runs in the background with SIGINT ignored, and so its children.
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\nfrom pipelines.core.paths import Layout\n"
        "from pipelines.cli.ui import serve_pages\n"
        "serve_pages(Layout(Path(sys.argv[1])), mlflow_port=int(sys.argv[2]),"
        " prefect_port=int(sys.argv[2]))\n"
    )
    # Not those of a server that other tests of this process keep.
    ours = ("PREFECT_", "MLFLOW_", "PYTEST_CURRENT_TEST")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(layout.root), str(busy)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert process.stdout is not None
        urls = dict(process.stdout.readline().split()[:2] for _ in range(2))
        assert str(busy) not in " ".join(urls.values())
        assert urls["MLflow"] != urls["Prefect"]
        found = requests.post(
            urls["MLflow"] + "/api/2.0/mlflow/experiments/search",
            json={"max_results": 10},
            auth=(login := (USER, secret(layout, "mlflow"))),
            timeout=90,
        ).json()
        assert "seen" in {experiment["name"] for experiment in found["experiments"]}
        assert "<title>" in requests.get(urls["MLflow"], auth=login, timeout=90).text
        assert "<title>" in requests.get(urls["Prefect"], timeout=90).text
        assert (layout.state / "prefect").is_dir()
        process.send_signal(number)
        assert process.wait(timeout=90) == (0 if number == signal.SIGINT else 143)
        for url in urls.values():
            with pytest.raises(requests.ConnectionError):
                requests.get(url, timeout=5)
    finally:
        process.terminate()  # and with it its servers, whatever failed above
        try:
            process.communicate(timeout=30)
        finally:
            process.kill()


def test_a_wrong_store_starts_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with (
        pytest.raises(UserError, match="MLFLOW_TRACKING_URI"),
        pages(layout, mlflow_port=5000, prefect_port=4200),
    ):
        raise AssertionError("no page was to come up")
    assert not (layout.state / "ui").exists()

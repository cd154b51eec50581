"""One worker and one server to a checkout: who is there, and who is told so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.scheduling.worker import _only_worker
from pipelines.systems.prefect.server import prefect_api, standing_server
from pipelines.systems.processes import process_start

API = "http://127.0.0.1:9/api"


def note(layout: Layout, pid: int, start: str | None) -> None:
    layout.state.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"api": API, "pid": pid, "start": start})
    (layout.state / "prefect-server.json").write_text(text)


def test_a_second_worker_is_refused_by_the_number_of_the_first(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    said = rf"already \(process {os.getpid()}\)"
    with _only_worker(layout), pytest.raises(UserError, match=said):
        _only_worker(layout).__enter__()
    with _only_worker(layout):  # the lock went with the first
        pass


def test_the_workers_server_is_used_while_its_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(layout.state / "prefect"))
    assert standing_server(layout) is None
    note(layout, os.getpid(), process_start(os.getpid()))
    assert standing_server(layout) == API
    with prefect_api(layout) as wait:
        wait()
        assert os.environ["PREFECT_API_URL"] == API
    assert "PREFECT_API_URL" not in os.environ


def test_a_server_that_was_killed_is_not_used(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(process.pid)
    process.communicate()
    note(layout, process.pid, start)
    assert standing_server(layout) is None
    note(layout, os.getpid(), "0")  # the id was used again
    assert standing_server(layout) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"api": 1, "pid": "x"}'])
def test_a_damaged_note_is_not_taken_for_a_server(tmp_path: Path, text: str) -> None:
    layout = Layout(tmp_path)
    layout.state.mkdir(parents=True)
    (layout.state / "prefect-server.json").write_text(text)
    assert standing_server(layout) is None

"""One worker and one server to a checkout: who is there, who is told so, and who may use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.scheduling.worker import _only_worker
from pipelines.systems.prefect.connection import api
from pipelines.systems.prefect.server import prefect_api, standing_server
from pipelines.systems.processes import process_start
from pipelines.systems.secrets import secret

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
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "the user's own")
    monkeypatch.setenv("PREFECT_HOME", str(layout.state / "prefect"))
    assert standing_server(layout) is None
    note(layout, os.getpid(), process_start(os.getpid()))
    assert standing_server(layout) == API
    with prefect_api(layout) as wait:
        wait()
        assert os.environ["PREFECT_API_URL"] == API
        assert os.environ["PREFECT_API_AUTH_STRING"] == secret(layout, "prefect")
    assert "PREFECT_API_URL" not in os.environ
    assert os.environ["PREFECT_API_AUTH_STRING"] == "the user's own"


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


def test_a_server_of_the_users_own_is_asked_with_the_users_own_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", API)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:mine")
    with prefect_api(layout) as wait:
        wait()
        said = {name: os.environ[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
    assert said == {"PREFECT_API_URL": API, "PREFECT_API_AUTH_STRING": "me:mine"}
    assert not layout.state.exists()


@pytest.mark.parametrize(
    ("login", "headers", "status"),
    [
        (True, {}, 200),
        (False, {}, 401),
        (True, {"Origin": "http://evil.example"}, 403),
        (True, {"Host": "evil.example"}, 403),
    ],
)
def test_the_server_answers_only_who_knows_the_secret_and_is_no_other_page(
    served: Layout, login: bool, headers: dict[str, str], status: int
) -> None:
    with api() as client:
        url = f"{str(client.api_url).rstrip('/')}/flows/filter"
    user, _, password = secret(served, "prefect").partition(":")
    answer = requests.post(
        url, json={}, headers=headers, auth=(user, password) if login else None, timeout=60
    )
    assert answer.status_code == status
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_refusal_is_said_with_what_to_set(served: Layout) -> None:
    wrong = {PREFECT_API_AUTH_STRING: "prong:wrong"}
    said = r"http://127\.0\.0\.1:\d+ refused access .*PREFECT_API_AUTH_STRING"
    with temporary_settings(wrong), pytest.raises(UserError, match=said), api() as client:
        client.read_flows()


@pytest.mark.parametrize("named", [False, True])
def test_a_home_of_the_users_own_gets_a_server_with_a_secret_unless_it_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    layout, home = Layout(tmp_path / "checkout"), tmp_path / "home"
    layout.root.mkdir()
    home.mkdir()
    profile = f'active = "p"\n[profiles.p]\nPREFECT_API_URL = "{API}"\n'
    (home / "profiles.toml").write_text(profile if named else "")
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(home))
    with prefect_api(layout):
        assert ("PREFECT_API_AUTH_STRING" in os.environ) == (not named)
        assert ("PREFECT_API_URL" in os.environ) == (not named)
        assert (layout.state / "secrets/prefect").exists() == (not named)

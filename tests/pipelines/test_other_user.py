"""Another user of the machine, and a web page in the owner's browser, against real servers.

Both can reach every port of loopback. Neither starts a run, moves an alias or learns a secret.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
from other_user import as_other_user, folder_all_may_enter, needs_root
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pipelines.core.paths import Layout
from pipelines.systems.secrets import USER, secret

pytestmark = pytest.mark.slow  # two servers start

PROGRAM = """
import os, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from pipelines.core.environment import set_up
from pipelines.core.paths import Layout
layout = Layout(Path(sys.argv[1]))
set_up(layout)
from pipelines.systems import mlflow as tracking
client = tracking.connect(layout)
client.create_registered_model("digits")
for _ in range(2):
    client.create_model_version("digits", (layout.state / "model").as_uri())
client.set_registered_model_alias("digits", "champion", "1")
from pipelines.cli.ui import serve_pages
serve_pages(layout, mlflow_port=5000, prefect_port=4200)
"""
ALIAS = "/api/2.0/mlflow/registered-models/alias"
MOVE = {"name": "digits", "alias": "champion", "version": "2"}
SHELL = {"name": "shell", "type": "process", "base_job_template": {}}


@dataclass(frozen=True)
class Pages:
    """What `prong ui` keeps in a checkout that every user of the machine may enter."""

    layout: Layout
    mlflow: str
    prefect: str
    process: int
    said: str

    def password(self) -> tuple[str, str]:
        return USER, secret(self.layout, "mlflow")

    def prefect_login(self) -> tuple[str, str]:
        user, _, password = secret(self.layout, "prefect").partition(":")
        return user, password

    def champion(self) -> str:
        asked = {"name": "digits", "alias": "champion"}
        answer = requests.get(
            self.mlflow + ALIAS, params=asked, auth=self.password(), timeout=60
        ).json()
        return str(answer["model_version"]["version"])


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    ours = ("PREFECT_", "MLFLOW_", "DVC_", "PYTEST_CURRENT_TEST")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    with folder_all_may_enter() as root:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(root)], env=env, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            urls = dict(line.split()[:2] for line in lines)
            layout = Layout(Path(root))
            yield Pages(layout, urls["MLflow"], urls["Prefect"], process.pid, "".join(lines))
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=90)


SEND = """
def send(method, url, body, **headers):
    headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code
mlflow, prefect, move, shell = sys.argv[1:]
move, shell = json.loads(move), json.loads(shell)
alias = mlflow + "/api/2.0/mlflow/registered-models/alias"
guess = "Basic cHJvbmc6cHJvbmc="
print(json.dumps([
    send("POST", alias, move),
    send("POST", alias, move, Authorization=guess),
    send("DELETE", alias, {"name": "digits", "alias": "champion"}),
    send("POST", prefect + "/api/work_pools/", shell),
    send("POST", prefect + "/api/work_pools/", shell, Authorization=guess),
    send("POST", prefect + "/api/flows/", {"name": "theirs"}),
    send("POST", prefect + "/api/flow_runs/filter", {}),
    send("POST", prefect + "/api/deployments/filter", {}),
]))
"""


@needs_root
def test_another_user_moves_no_alias_and_starts_no_run(pages: Pages) -> None:
    said = as_other_user(SEND, pages.mlflow, pages.prefect, json.dumps(MOVE), json.dumps(SHELL))
    assert json.loads(said) == [401] * 8
    assert pages.champion() == "1"
    found = requests.post(
        pages.prefect + "/api/work_pools/filter", json={}, auth=pages.prefect_login(), timeout=60
    )
    assert "shell" not in [pool["name"] for pool in found.json()]


@needs_root
def test_another_user_learns_no_secret(pages: Pages) -> None:
    family = [psutil.Process(pages.process)]
    family += family[0].children(recursive=True)
    assert len(family) == 3
    secrets = [secret(pages.layout, "mlflow"), secret(pages.layout, "prefect").partition(":")[2]]
    seen = " ".join(" ".join(one.cmdline()) for one in family) + pages.said
    assert [one for one in secrets if one in seen] == []
    program = """
found = []
for path in sys.argv[1:]:
    try:
        found.append(open(path).read())
    except PermissionError:
        pass
print(found)
"""
    paths = [f"/proc/{one.pid}/environ" for one in family]
    paths += [str(path) for path in pages.layout.state.rglob("*") if path.is_file()]
    assert str(pages.layout.state / "mlflow.db") in paths
    assert as_other_user(program, *paths) == "[]"
    logs = "".join(path.read_text() for path in pages.layout.state.glob("ui/*.log"))
    assert [one for one in secrets if one in logs] == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Host": "evil.example:5000", "Origin": "http://evil.example:5000"},
    ],
)
def test_a_web_page_in_the_owners_browser_reaches_neither(
    pages: Pages, headers: dict[str, str]
) -> None:
    # A browser may add what it knows: the password that the owner typed.
    moved = requests.post(
        pages.mlflow + ALIAS, json=MOVE, headers=headers, auth=pages.password(), timeout=60
    )
    made = requests.post(
        pages.prefect + "/api/work_pools/",
        json=SHELL,
        headers=headers,
        auth=pages.prefect_login(),
        timeout=60,
    )
    for answer in (moved, made):
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    asked = {"Access-Control-Request-Method": "POST", **headers}
    for url in (pages.mlflow + ALIAS, pages.prefect + "/api/work_pools/"):
        answer = requests.options(url, headers=asked, timeout=60)
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert pages.champion() == "1"


def test_prefects_event_stream_asks_for_the_same(pages: Pages) -> None:
    url = pages.prefect.replace("http://", "ws://") + "/api/events/out"

    async def greeting(token: str, origin: str | None) -> str:
        async with connect(url, subprotocols=["prefect"], origin=origin, proxy=None) as stream:  # type: ignore[list-item,arg-type]
            await stream.send(json.dumps({"type": "auth", "token": token}))
            return str(json.loads(await stream.recv())["type"])

    right = secret(pages.layout, "prefect")
    assert asyncio.run(greeting(right, None)) == "auth_success"
    assert asyncio.run(greeting(right, pages.prefect)) == "auth_success"
    with pytest.raises(ConnectionClosed):
        asyncio.run(greeting("prong:guess", None))
    with pytest.raises(InvalidStatus, match="403"):
        asyncio.run(greeting(right, "http://evil.example"))


def test_the_owner_uses_both(pages: Pages) -> None:
    assert f"user prong, password: the line in {pages.layout.state}/secrets/mlflow" in pages.said
    assert f"password: the line in {pages.layout.state}/secrets/prefect" in pages.said
    page = requests.get(pages.mlflow, auth=pages.password(), timeout=60)
    assert "<title>" in page.text
    assert page.headers["X-Frame-Options"] == "SAMEORIGIN"
    # Prefect's page comes without a secret, and asks for it before it shows anything.
    page = requests.get(pages.prefect, timeout=60)
    assert "<title>" in page.text
    assert page.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert requests.get(pages.prefect + "/ui-settings", timeout=60).json()["auth"] == "BASIC"
    origin = {"Origin": pages.prefect}
    made = requests.post(
        pages.prefect + "/api/work_pools/",
        json={**SHELL, "name": "owners"},
        headers=origin,
        auth=pages.prefect_login(),
        timeout=60,
    )
    assert made.status_code == 201, made.text
    moved = requests.post(
        pages.mlflow + ALIAS,
        json=MOVE,
        headers={"Origin": pages.mlflow},
        auth=pages.password(),
        timeout=60,
    )
    assert moved.status_code == 200, moved.text
    assert pages.champion() == "2"

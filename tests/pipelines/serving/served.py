"""A really running server: in a thread of the test, or in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn

from pipelines.serving.http.application import Server, create_app
from pipelines.serving.http.live import Drift, Live, Loaded, ShadowReceiver
from pipelines.serving.http.metrics import Metrics
from pipelines.serving.http.settings import ServeSettings
from pipelines.serving.http.uvicorn_settings import configuration
from pipelines.serving.request_log import RequestLog
from pipelines.systems.loopback import listen, port_of
from pipelines.systems.onnx.runtime import OnnxModel

ROOT = Path(__file__).parents[3]
NAME = "digits"


def loaded(path: Path, version: int = 3, drift: Drift | None = None) -> Loaded:
    """A version that can answer, of a file."""
    model = OnnxModel.load(path, "cpu", threads=1)
    return Loaded(version, model.sha256, model, drift, datetime.now(UTC))


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


@dataclass
class Running:
    """A server that listens."""

    port: int
    live: Live = field(default_factory=lambda: Live(NAME))
    app: Server | None = None

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            method = method or ("GET" if body is None else "POST")
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            found = {key.lower(): value for key, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())
        finally:
            connection.close()

    def infer(self, request: Any, behind: bytes = b"", **headers: str) -> Reply:
        head = request if isinstance(request, bytes) else json.dumps(request).encode()
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        if behind:
            sent.setdefault("Inference-Header-Content-Length", str(len(head)))
        return self.ask(f"/v2/models/{self.live.name}/infer", head + behind, sent)


@contextmanager
def serving(
    version: Loaded | None,
    log: RequestLog | None = None,
    shadow: ShadowReceiver | None = None,
    live: Live | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Serve in a thread, until the end of the block."""
    live = live or Live(NAME)
    if version is not None:
        live.swap(version)
        version = None  # kept by nobody else
    listener = listen(0)
    chosen = ServeSettings(port=port_of(listener), **settings)
    app = create_app(live, chosen, log, Metrics(live), shadow, checkout=ROOT)
    server = uvicorn.Server(configuration(app, chosen))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Running(port_of(listener), live, app)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def process(path: Path, *, version: int = 3, **settings: Any) -> Iterator[tuple[Running, int]]:
    """Serve a file in a process of its own; yield the server and the process's id."""
    command = [sys.executable, str(Path(__file__)), str(path), str(version), json.dumps(settings)]
    parts = [str(ROOT), str(ROOT / "tests/pipelines"), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(parts)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line, "the server ended"
            yield Running(int(line)), child.pid
        finally:
            child.terminate()
            child.wait(30)


def _main(path: str, version: str, settings: str) -> None:
    live = Live(NAME)
    live.swap(loaded(Path(path), int(version)))
    listener = listen(0)
    given = json.loads(settings)
    folder = given.pop("log", None)
    log = RequestLog(Path(folder)) if folder else None
    chosen = ServeSettings(port=port_of(listener), **given)
    app = create_app(live, chosen, log, Metrics(live), checkout=ROOT)
    print(port_of(listener), flush=True)
    uvicorn.Server(configuration(app, chosen)).run(sockets=[listener])


if __name__ == "__main__":
    _main(*sys.argv[1:])

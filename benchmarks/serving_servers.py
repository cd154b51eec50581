"""The servers that `benchmarks.serving` compares, each with the same file and threads."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.serving_load import Load
from pipelines.systems.processes import end_group, kept

HERE = Path(__file__).parent / "serving_peers"
ROOT = Path(__file__).parents[1]
PATIENCE = 120.0
PEERS = {
    "litserve": ("litserve==0.2.19", "onnxruntime-gpu==1.31.1"),
    "mlserver": ("mlserver==1.7.1", "onnxruntime-gpu==1.31.1"),
}
"""Server → the packages of its environment; they do not go with those of this project."""


@dataclass(frozen=True)
class Asked:
    """What every server is asked: one real image.

    Attributes:
        project: With a champion.
        onnx: Its file.
        name: The registered model's name.
        image: uint8 [1, channels, size, size].
        threads: Of ONNX Runtime for one operator.
        scratch: A folder for what servers need.
    """

    project: Path
    onnx: Path
    name: str
    image: NDArray[np.uint8]
    threads: int
    scratch: Path


@dataclass(frozen=True)
class Running:
    """A server at work.

    Attributes:
        process: That was started; it leads a group.
        ready: Seconds from its start until it was ready.
        load: The request that it is asked, once.
    """

    process: subprocess.Popen[bytes]
    ready: float
    load: Load

    def cpu(self) -> float:
        """Return the processor time that its processes have used, in seconds."""
        parent = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (parent, *parent.children(recursive=True))]
        return float(sum(t.user + t.system for t in times))


@dataclass(frozen=True)
class Start:
    """How a server is started and asked.

    Attributes:
        command: Program and arguments.
        ready: Path that answers 200 once it is ready.
        path: Of the request.
        headers: Of the request.
        body: Of the request.
        folder: Working directory.
        environment: More variables.
    """

    command: Sequence[str]
    ready: str
    path: str
    headers: dict[str, str]
    body: bytes
    folder: Path
    environment: dict[str, str]


def environment(name: str) -> Path:
    """Return the interpreter of a peer's environment; it is made where it is absent."""
    folder = ROOT / ".venv/peers" / name
    python = folder / "bin/python"
    if not python.exists():
        print(f"making {folder} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS[name]], check=True)
    return python


def prong_start(asked: Asked, port: int, *, binary: bool) -> Start:
    """Return how `prong serve` is started; asked by binary tensors, or by JSON."""
    shape = list(asked.image.shape)
    given: dict[str, Any] = {"name": "images", "shape": shape, "datatype": "UINT8"}
    output: dict[str, Any] = {"name": "logits"}
    headers = {}
    tail = b""
    if binary:
        given["parameters"] = {"binary_data_size": asked.image.size}
        output["parameters"] = {"binary_data": True}
        tail = asked.image.tobytes()
    else:
        given["data"] = asked.image.ravel().tolist()
    head = json.dumps({"inputs": [given], "outputs": [output]}).encode()
    if binary:
        headers["Inference-Header-Content-Length"] = str(len(head))
    headers["Content-Type"] = "application/octet-stream" if binary else "application/json"
    program = [sys.executable, "-m", "pipelines.cli.app", "serve"]
    return Start(
        [*program, "--port", str(port), "--threads", str(asked.threads), "--provider", "cpu"],
        "/v2/health/ready",
        f"/v2/models/{asked.name}/infer",
        headers,
        head + tail,
        asked.project,
        {"PYTHONPATH": str(ROOT)},
    )


def plain_start(asked: Asked, port: int) -> Start:
    """Return how the 25 lines are started that check nothing."""
    command = [sys.executable, str(HERE / "plain_app.py"), str(asked.onnx), str(port)]
    return Start(
        [*command, str(asked.threads)],
        "/openapi.json",
        "/infer",
        {"Content-Type": "application/octet-stream"},
        asked.image.tobytes(),
        asked.scratch,
        {},
    )


def litserve_start(asked: Asked, port: int) -> Start:
    """Return how LitServe is started."""
    python = environment("litserve")
    command = [str(python), str(HERE / "litserve_app.py"), str(asked.onnx), str(port)]
    body = json.dumps({"image": asked.image[0].tolist()}).encode()
    headers = {"Content-Type": "application/json"}
    return Start(
        [*command, str(asked.threads)], "/health", "/predict", headers, body, asked.scratch, {}
    )


def mlserver_start(asked: Asked, port: int) -> Start:
    """Return how MLServer is started."""
    python = environment("mlserver")
    folder = asked.scratch / "mlserver"
    folder.mkdir(exist_ok=True)
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings = {**ports, "host": "127.0.0.1", "parallel_workers": 0, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": "served", "implementation": "mlserver_model.Served"}
    (folder / "model-settings.json").write_text(json.dumps(model))
    tensor = {
        "name": "images",
        "shape": list(asked.image.shape),
        "datatype": "UINT8",
        "data": asked.image.ravel().tolist(),
    }
    return Start(
        [str(python), "-m", "mlserver.cli.main", "start", str(folder)],
        "/v2/models/served/ready",
        "/v2/models/served/infer",
        {"Content-Type": "application/json"},
        json.dumps({"inputs": [tensor]}).encode(),
        folder,
        {
            "PYTHONPATH": str(HERE),
            "PEER_MODEL": str(asked.onnx),
            "PEER_THREADS": str(asked.threads),
            "PATH": f"{python.parent}:{os.environ['PATH']}",
        },
    )


def mlflow_start(asked: Asked, port: int) -> Start:
    """Return how MLflow's own server is started."""
    folder = asked.scratch / "mlflow"
    if not folder.exists():
        made = subprocess.run(
            [sys.executable, str(HERE / "mlflow_model.py"), str(asked.onnx), str(folder)],
            cwd=asked.scratch,
            env={**os.environ, "PEER_THREADS": str(asked.threads)},
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise RuntimeError(made.stderr)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder)]
    options = ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    body = json.dumps({"inputs": {"images": asked.image.tolist()}}).encode()
    headers = {"Content-Type": "application/json"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path}
    return Start(
        [*command, *options], "/ping", "/invocations", headers, body, asked.scratch, environment
    )


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(start: Start, port: int, log: Path) -> Iterator[Running]:
    """Start a server, wait until it is ready, and end it afterwards.

    Raises:
        RuntimeError: If it ends before, or is not ready in time.
    """
    began = time.perf_counter()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            start.command,
            cwd=start.folder,
            env=kept({**os.environ, **start.environment}),
            start_new_session=True,
            stdout=sink,
            stderr=sink,
        )
    try:
        while not _answers(port, start.ready):
            if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                raise RuntimeError(f"{start.command[0]}: not ready: {log.read_text()[-1000:]}")
            time.sleep(0.02)
        ready = time.perf_counter() - began
        body = base64.b64encode(start.body).decode()
        yield Running(process, ready, Load(port, start.path, start.headers, body))
    finally:
        end_group(process)


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False

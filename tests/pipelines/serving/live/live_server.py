"""A real server in a process of its own, as `prong serve` starts it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finished_checkout import PARAMS
from small_checkout import SOURCE

from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until

MODEL = PARAMS.model_name
PATIENCE = 40.0


def command(layout: Layout, *options: str, **more: str) -> subprocess.Popen[str]:
    """Start `prong serve` with options in a checkout that may lack the project's files."""
    for name in ("dvc.yaml", "params.yaml"):
        if not (layout.root / name).exists():
            shutil.copy(SOURCE / name, layout.root / name)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    with (layout.root / "server.log").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.app", "serve", "--port", "0", *options],
            cwd=layout.root,
            env={**kept, "PYTHONPATH": str(SOURCE), **more},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def refused(layout: Layout, *options: str, **more: str) -> tuple[int, str, str]:
    """Return exit code, output and errors of a server that does not come to serve."""
    process = command(layout, *options, **more)
    out, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, out, (layout.root / "server.log").read_text()


@dataclass
class Server:
    """A server that answers.

    Attributes:
        layout: Its checkout.
        process: Of the command.
        url: Where it listens.
        seconds: From its start to its first answer that it is ready.
    """

    layout: Layout
    process: subprocess.Popen[str]
    url: str
    seconds: float

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> Any:
        """Return an answer's body, as JSON if it is."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            body = answer.read()
        return json.loads(body) if answer.headers["content-type"].startswith("app") else body

    def health(self) -> dict[str, Any]:
        """Return what it says about itself to people."""
        found: dict[str, Any] = self.get("/health")
        return found

    @property
    def version(self) -> int:
        """The version that answers."""
        return int(self.health()["version"])

    @property
    def problems(self) -> str:
        """What is wrong with the registry, as health says."""
        return "; ".join(self.health()["problems"])

    def metric(self, name: str) -> float:
        """Return one figure without labels."""
        lines = self.get("/metrics").decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    def becomes(self, version: int, patience: float = PATIENCE) -> None:
        """Wait until a version answers."""
        assert wait_until(lambda: self.version == version, patience, pause=0.1), self.health()

    def says(self, part: str, patience: float = PATIENCE) -> None:
        """Wait until health tells of a problem."""
        assert wait_until(lambda: part in self.problems, patience, pause=0.1), self.health()

    def is_well(self, patience: float = PATIENCE) -> None:
        """Wait until the registry was asked and nothing is wrong."""
        assert wait_until(lambda: not self.problems, patience, pause=0.1), self.health()

    def children(self) -> dict[int, str]:
        """Return the process ids of its children, with their commands."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        found = [pid for task in tasks for pid in (task / "children").read_text().split()]
        return {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in found}

    def log(self) -> list[dict[str, Any]]:
        """Return what it wrote to stderr."""
        lines = (self.layout.root / "server.log").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def serving(layout: Layout, *options: str, **more: str) -> Iterator[Server]:
    """Yield a server that is ready; it is killed at the end if it still runs."""
    began = time.monotonic()
    process = command(layout, *options, **more)
    assert process.stdout is not None
    try:
        ready = select.select([process.stdout], [], [], PATIENCE)[0]
        line = process.stdout.readline() if ready else ""
        assert "http://" in line, (line, (layout.root / "server.log").read_text())
        server = Server(layout, process, line.split()[-1], 0.0)
        assert server.get("/v2/health/ready") is not None
        server.seconds = time.monotonic() - began
        yield server
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

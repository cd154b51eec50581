"""Whatever happens to registry, files and processes: the last good version answers, and says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from finished_checkout import FinishedCheckout
from live_server import MODEL, PATIENCE, Server, refused, serving
from many_clients import load
from numpy.typing import NDArray

from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.registry.last_seen import cached_file
from pipelines.release import promote as promotion
from pipelines.release.register import register
from pipelines.serving.request_log import log_folder
from pipelines.systems import mlflow as tracking

pytestmark = pytest.mark.slow


def _watcher(server: Server) -> int:
    return next(pid for pid, told in server.children().items() if "watch_registry" in told)


@contextmanager
def _unwatched(server: Server) -> Iterator[None]:
    """Let the watching process see nothing for a while."""
    pid = _watcher(server)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _release(layout: Layout, noise: float, seed: int) -> tuple[int, str, Path]:
    """Release another model; return its version, its hash and its file in the store."""
    made = FinishedCheckout.make(layout, noise, seed)
    done = register(layout, made.params, None)
    assert promotion.promote(layout, made.with_margin(0.9), done.version, asked=True).promoted
    client = tracking.connect(layout)
    where = client.get_model_version_download_uri(MODEL, str(done.version))
    return done.version, done.onnx_sha256, Path(where.removeprefix("file://")) / "model.onnx"


def test_a_registry_that_is_gone(server: Server) -> None:
    server.is_well()
    version, database = server.version, server.layout.state / "mlflow.db"
    database.rename(database.with_suffix(".away"))
    server.says("is gone")
    assert server.version == version
    assert not database.exists()  # and no empty one was made in its place
    assert server.metric("prong_registry_problems") == 1
    database.with_suffix(".away").rename(database)
    server.is_well()


def test_a_history_that_was_cut_or_forged(server: Server) -> None:
    server.is_well()
    client, version = tracking.connect(server.layout), server.version
    tags = client.get_registered_model(MODEL).tags
    newest = max(key for key in tags if key.startswith("prong.history."))
    client.delete_registered_model_tag(MODEL, newest)
    server.says("is gone")
    assert server.version == version
    forged = {**json.loads(tags[newest]), "version": 3 - version}
    client.set_registered_model_tag(MODEL, newest, json.dumps(forged))
    server.says("was changed")
    later = f"prong.history.{int(newest[-8:]) + 1:08d}"
    forged["sequence"] += 1
    client.set_registered_model_tag(MODEL, later, json.dumps(forged))
    server.says("is not signed")
    assert server.version == version
    client.delete_registered_model_tag(MODEL, later)
    client.set_registered_model_tag(MODEL, newest, tags[newest])
    server.is_well()


def test_a_file_that_was_exchanged_in_store_or_cache(server: Server) -> None:
    server.is_well()
    before = server.version
    with _unwatched(server):
        version, sha256, file = _release(server.layout, 2.0, 5)
        good = file.read_bytes()
        file.write_bytes(good + b"more")
        cached_file(server.layout, sha256).write_bytes(b"no model")
    server.says("is damaged or was exchanged")
    assert server.version == before
    file.write_bytes(good)
    server.becomes(version)  # it is fetched again
    assert cached_file(server.layout, sha256).read_bytes() == good
    server.is_well()


def test_a_statement_that_was_forged(server: Server) -> None:
    server.is_well()
    before, layout = server.version, server.layout
    with _unwatched(server):
        version, _, _ = _release(layout, 3.0, 6)
        client = tracking.connect(layout)
        tags = client.get_model_version(MODEL, str(version)).tags
        key = next(key for key in tags if key.startswith("prong.statement."))
        forged = json.dumps({**json.loads(tags[key]), "error": 0.0})
        client.set_model_version_tag(MODEL, str(version), key, forged)
        shutil.rmtree(layout.state / "remembered")  # another machine promoted it
    server.says("no signed statement says that the gates let it through")
    assert server.version == before
    client.set_model_version_tag(MODEL, str(version), key, tags[key])
    server.becomes(version)


def test_a_watching_process_that_dies_is_started_again(server: Server) -> None:
    server.is_well()
    pid = _watcher(server)
    os.kill(pid, signal.SIGKILL)
    server.says("not watched: the process ended with code -9; it is started again")
    server.is_well()
    assert _watcher(server) != pid
    assert server.process.poll() is None


def test_after_sigkill_every_answered_request_is_in_the_log(
    server: Server, images: NDArray[np.uint8]
) -> None:
    children = server.children()
    with load(server.port, MODEL, images, clients=8) as clients:
        clients.wait_for(500)
        server.process.kill()
        server.process.wait()
        report = clients.stop()
    logged = set()
    for path in log_folder(server.layout, MODEL).glob("*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:  # the last may be torn
            logged.add(json.loads(line)["request"])
    assert len(report.answers) >= 500
    assert [name for name, *_ in report.answers if name not in logged] == []
    assert wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children), 10)


def test_what_was_remembered_serves_without_a_registry_if_its_file_is_whole(
    checkouts: Callable[[], Layout],
) -> None:
    layout = checkouts()
    database = layout.state / "mlflow.db"
    database.unlink()
    with serving(layout, "--poll", "0.2") as found:
        assert found.version == 2
        found.says("is gone")
    for file in (layout.state / "cache").iterdir():
        file.write_bytes(b"no model")
    code, out, errors = refused(layout)
    assert (code, out) == (2, "")
    assert "there is nothing to answer from: registry: the database" in errors
    assert "Traceback" not in errors


def test_what_is_refused_at_the_start(checkouts: Callable[[], Layout], tmp_path: Path) -> None:
    layout = checkouts()
    busy = socket.create_server(("127.0.0.1", 0))
    key, open_to_all, empty = tmp_path / "key", tmp_path / "open", tmp_path / "empty"
    for file, mode, text in (
        (key, 0o600, "0123456789abcdef\n"),
        (open_to_all, 0o644, "0123456789abcdef\n"),
        (empty, 0o600, "\n"),
    ):
        file.write_text(text)
        file.chmod(mode)
    wrong = {
        ("--port", str(busy.getsockname()[1])): "another program listens there",
        ("--host", "0.0.0.0"): "others could reach the server",
        ("--host", "no.such.name.invalid"): "no address has that name",
        ("--api-key-file", str(open_to_all)): "other users may read or change it (mode 0644)",
        ("--api-key-file", str(empty)): "empty",
        ("--api-key-file", str(tmp_path / "absent")): "no such file",
        ("--provider", "tpu"): "allowed: auto, cpu, cuda",
        ("--provider", "cuda"): "CUDA asked for and absent",
        ("--shadow", "2"): "allowed are 0 to 1",
        ("--model", "typo"): "there is nothing to answer from",
    }
    with busy:
        for options, said in wrong.items():
            code, out, errors = refused(layout, *options)
            assert (code, out) == (2, ""), (options, errors)
            assert said in errors, errors
            assert "Traceback" not in errors
    with serving(layout, "--host", "0.0.0.0", "--api-key-file", str(key)) as found:
        assert found.terminate() == 0


def test_a_checkout_without_memory_waits_for_the_registry(
    checkouts: Callable[[], Layout],
) -> None:
    layout = checkouts()
    for name in ("remembered", "cache"):
        shutil.rmtree(layout.state / name)
    with serving(layout, "--poll", "0.2") as found:
        assert found.version == 2
        assert found.seconds < PATIENCE
        found.is_well()


def test_a_tracking_server_that_is_killed(checkouts: Callable[[], Layout], tmp_path: Path) -> None:
    layout = checkouts()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri, database = f"http://127.0.0.1:{port}", layout.state / "mlflow.db"
    program = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri"]
    program += [f"sqlite:///{database}", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "mlflow.log").open("w") as log:
        registry = subprocess.Popen(
            [*program, "--workers", "1"],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:

        def answers() -> bool:
            with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=2):
                return True
            return False

        assert wait_until(answers, 90, pause=0.5), (tmp_path / "mlflow.log").read_text()
        with serving(layout, "--poll", "0.2", MLFLOW_TRACKING_URI=uri) as found:
            found.is_well()
            assert found.version == 2
            os.killpg(registry.pid, signal.SIGKILL)
            registry.wait()
            found.says("MLflow does not answer")
            assert found.version == 2
            assert found.metric("prong_ready") == 1
    finally:
        with suppress(ProcessLookupError):
            os.killpg(registry.pid, signal.SIGKILL)
        registry.wait()

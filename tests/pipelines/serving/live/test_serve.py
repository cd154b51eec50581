"""`prong serve` in a few seconds: it follows the history under load, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
from live_server import MODEL, Server
from many_clients import load
from numpy.typing import NDArray
from small_checkout import SOURCE

from pipelines.release.promote import rollback
from pipelines.systems import mlflow as tracking

HEAVY = ("mlflow", "torch", "prefect", "pandas", "scipy", "dvc", "sqlalchemy")


def test_the_server_is_ready_in_seconds_from_what_was_remembered(server: Server) -> None:
    assert server.version == 2
    assert server.seconds < 3 * 3  # three times what it may take on an idle machine


def test_what_the_server_loads_is_light() -> None:
    program = (
        f"import sys, pipelines.serving.run_server; print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SOURCE, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_rollback_under_load_loses_nothing_and_a_moved_alias_changes_nothing(
    server: Server, images: NDArray[np.uint8]
) -> None:
    server.is_well()
    client = tracking.connect(server.layout)
    with load(server.port, MODEL, images, clients=4) as clients:
        clients.wait_for(50)
        client.set_registered_model_alias(MODEL, "champion", 1)
        server.says("an alias says otherwise than the history, and is not obeyed")
        assert server.metric("prong_registry_problems") == 1
        clients.wait_for(50)
        moved = clients.report.versions
        client.set_registered_model_alias(MODEL, "champion", 2)
        rollback(server.layout, MODEL, None, "answers were odd")
        server.becomes(1)
        swapped = time.time()
        clients.wait_for(50)
        report = clients.stop()
    assert report.failures == []
    assert set(moved) == {2}
    late = [version for _, version, at, took in report.answers if at - took > swapped]
    assert late
    assert set(late) == {1}
    assert server.metric("prong_reloads_total") == 1


def test_sigterm_ends_requests_well(server: Server, images: NDArray[np.uint8]) -> None:
    with load(server.port, MODEL, images, clients=4) as clients:
        clients.wait_for(50)
        assert server.terminate() == 0
        ended = time.time()
        report = clients.stop()
    late = [name for name, _, at, _ in report.answers if at > ended]
    assert late == []
    # Once it listens no more, connections are refused; none that it took was broken.
    assert {reason.partition("(")[0] for _, reason in report.failures} <= {"ConnectionRefusedError"}

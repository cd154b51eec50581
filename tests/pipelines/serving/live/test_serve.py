"""`prong serve` in a few seconds: it follows the history under load, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from live_server import MODEL, Server
from many_clients import load
from numpy.typing import NDArray
from small_checkout import SOURCE

from pipelines.core.paths import Layout
from pipelines.registry import memory
from pipelines.registry.last_seen import NotSigned, cached_file, last_seen, verified
from pipelines.release.promote import rollback
from pipelines.serving.http.settings import ServeSettings
from pipelines.serving.run_server import LAST_CALL
from pipelines.serving.watch.lines import parsed
from pipelines.serving.watch.loading import NotHere
from pipelines.serving.watch.loading import load as load_version
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


def test_a_release_is_checked_again_by_the_server(checkouts: Callable[[], Layout]) -> None:
    layout = checkouts()
    seen = last_seen(layout, MODEL)
    assert seen is not None
    assert seen.statement.version == 2
    last, statement = seen.last.text(), seen.statement.text
    assert verified(layout, MODEL, last, last, statement) == seen
    recalled = memory.recall(layout, MODEL)
    first = recalled.entries[0].text()
    others = [text for text in recalled.statements.values() if text != statement]
    for texts in (
        (last.replace('"version":2', '"version":1'), last, statement),
        (last, first, statement),
        (last, last, others[0]),
        (last, last, statement.replace('"size":', '"size":1')),
        ("", "", ""),
    ):
        with pytest.raises(NotSigned):
            verified(layout, MODEL, *texts)
    with pytest.raises(NotSigned):
        verified(layout, "another", last, last, statement)
    settings = ServeSettings(provider="cpu")
    assert load_version(layout, seen, settings).version == 2
    file = cached_file(layout, seen.statement.sha256)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(NotHere, match="exchanged or damaged"):
        load_version(layout, seen, settings)
    file.unlink()
    with pytest.raises(NotHere, match="not in the cache"):
        load_version(layout, seen, settings)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b'{"problems": [], "path": "/etc/passwd"}',
        b'{"problems": [1]}',
        b'{"problems": [], "last": "' + b"x" * 5001 + b'"}',
        b'{"problems": [], "challenger": {"version": 1, "sha256": "../../etc/passwd"}}',
    ],
)
def test_a_line_that_does_not_fit_tells_nothing(line: bytes) -> None:
    assert parsed(line) is None


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
        told = time.time()
        assert server.terminate() == 0
        report = clients.stop()
    # Nobody comes in once it listens no more, and not before.
    assert report.failures
    assert min(began for _, _, began in report.failures) > told + LAST_CALL / 2
    assert max(at for _, _, at, _ in report.answers) > told + LAST_CALL / 2

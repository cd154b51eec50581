"""The drift graph that was released with a version is loaded with it, or after it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from finished_checkout import FinishedCheckout
from live_server import MODEL, PATIENCE, serving
from many_clients import load

from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.data.prepared import load_split
from pipelines.drift.fit_drift import fit
from pipelines.registry.last_seen import cached_drift, drift_sha256, last_seen
from pipelines.release import promote as promotion
from pipelines.release.register import register

pytestmark = pytest.mark.slow


def test_drift_is_scored_by_the_graph_that_was_released(checkouts: Callable[[], Layout]) -> None:
    layout = checkouts()
    made = FinishedCheckout.make(layout, 2.0, 5)
    splits = [load_split(layout.prepared, name) for name in ("train", "gate")]
    layout.drift.write_bytes(fit(layout.onnx.read_bytes(), splits[0], splits[1].inputs))
    done = register(layout, made.params, None)
    with serving(layout, "--poll", "0.2") as server:
        assert server.health()["drift"] is None  # version 2 has none
        wide = made.with_margin(0.9)
        assert promotion.promote(layout, wide, done.version, asked=True).promoted
        server.becomes(done.version)
        method = server.health()["drift"]
        assert method
        images: np.ndarray = splits[1].inputs[:2]
        with load(server.port, MODEL, images, clients=1) as clients:
            clients.wait_for(20)
        ranks = f'prong_drift_rank_count{{version="{done.version}"}}'
        assert ranks in server.get("/metrics").decode()
    seen = last_seen(layout, MODEL)
    assert seen is not None
    file = cached_drift(layout, drift_sha256(seen.statement))
    file.write_bytes(b"exchanged")
    with serving(layout, "--poll", "0.2") as server:
        assert server.version == done.version
        assert wait_until(lambda: server.health()["drift"] == method, PATIENCE, pause=0.2)
        assert server.metric("prong_reloads_total") == 0

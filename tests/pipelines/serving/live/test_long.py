"""Many requests, many changes of what is live: none lost, and reloading costs hardly any time.

`PRONG_LONG=200000` sets how many requests there are; alone: `pytest -s …/test_long.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import many_clients
import numpy as np
import pytest
from finished_checkout import FinishedCheckout
from live_server import MODEL, serving
from many_clients import Report

from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.data.prepared import load_split
from pipelines.release import promote as promotion
from pipelines.release.register import register

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
REQUESTS = int(os.environ.get("PRONG_LONG", "20000"))
CHANGES = 20
AFTER = 0.1  # seconds after a version took over that count as part of the reload


def test_no_request_is_lost_by_promotions_and_rollbacks(
    checkouts: Callable[[], Layout], tmp_path: Path
) -> None:
    layout = checkouts()
    np.save(tmp_path / "images.npy", load_split(layout.prepared, "test").inputs[:1])
    live = [1, 2]
    with serving(layout, "--poll", "0.2", "--log-share", "0") as server:
        server.is_well()
        clients = subprocess.Popen(
            [
                *(sys.executable, many_clients.__file__, str(server.port), MODEL),
                *(str(tmp_path / "images.npy"), "8"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert clients.stdin is not None
        assert clients.stdout is not None

        def answers() -> int:
            print(file=clients.stdin, flush=True)
            return int(clients.stdout.readline())

        for number in range(CHANGES):
            wanted = answers() + REQUESTS // CHANGES
            assert wait_until(lambda wanted=wanted: answers() >= wanted, 900, pause=0.5)
            if number % 2 == 0:  # one step on, then back again
                made = FinishedCheckout.make(layout, 1.5 + number / 50, 100 + number)
                done = register(layout, made.params, None)
                wide = made.with_margin(0.9)
                asked = promotion.promote(layout, wide, done.version, asked=True)
                assert asked.promoted, asked.reason
                live.append(done.version)
            else:
                live.append(promotion.rollback(layout, MODEL, None, "to and fro").version)
            server.becomes(live[-1])
        out, _ = clients.communicate(timeout=60)
        assert server.metric("prong_reloads_total") == CHANGES
        loads = [line for line in server.log() if line["message"] == "loaded"][1:]
    report = Report(*json.loads(out))
    took, when = report.seconds(), np.array([at for _, _, at, _ in report.answers])
    near = np.zeros(len(when), bool)
    for line in loads:
        ended = datetime.strptime(line["time"], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        near |= (when > ended - line["seconds"]) & (when - took < ended + AFTER)
    reloading, steady = (1e3 * np.quantile(took[rows], 0.99) for rows in (near, ~near))
    print(
        f"\n{len(took):,} answers, {len(report.failures)} failed, {CHANGES} changes; "
        f"p99 of {near.sum():,} while reloading {reloading:.2f} ms, else {steady:.2f} ms; "
        f"p50 {1e3 * np.median(took[near]):.2f} and {1e3 * np.median(took[~near]):.2f} ms"
    )
    assert report.failures == []
    assert len(took) >= REQUESTS
    assert set(report.versions) == set(live[1:])

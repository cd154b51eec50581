"""`prong run` by hand: what a killed one leaves behind, and what the next one makes of it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from small_checkout import Checkout, make

from pipelines.core import params_file

LOOK = """
import dataclasses, json
from pipelines.core.environment import open_checkout
layout, _ = open_checkout()
from pipelines.scheduling.overview import overview
print(json.dumps(dataclasses.asdict(overview(layout)), default=str))
"""


def outcomes(checkout: Checkout) -> list[tuple[str, str]]:
    """Return outcome and what came of each run, the earliest first."""
    done = checkout.run(sys.executable, "-c", LOOK)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["next_runs"] == []
    return [(run["outcome"], run["came_of"]) for run in reversed(found["runs"])]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_is_closed_by_the_next_one(tmp_path: Path) -> None:
    checkout = make(tmp_path / "job")
    params_file.edit(checkout.root / "params.yaml", ["train.epochs=3"])
    process = checkout.start("run")
    assert process.stdout is not None
    assert any("prepare" in line for line in process.stdout), "the first stage did not end"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    ((outcome, said),) = outcomes(checkout)
    assert (outcome, "is gone" in said) == ("lost", True)
    done = checkout.prong("run")
    assert done.code == 0, done.err
    first, second = outcomes(checkout)
    assert first[0] == "crashed"
    assert "is gone" in first[1]
    assert second == ("completed", "v1 champion")

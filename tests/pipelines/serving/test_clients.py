"""Clients of others: Triton's own, and a tester of the OpenAPI document."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from served import ROOT, Running

TRITON = ROOT / ".venv/triton/bin/python"
SURFACE = Path(__file__).with_name("triton_surface.py")


@pytest.mark.skipif(not TRITON.exists(), reason=f"no {TRITON}: run scripts/triton_client.sh")
def test_tritons_client_runs_its_surface(digits: Running, houses: Running) -> None:
    addresses = [f"127.0.0.1:{one.port}" for one in (digits, houses)]
    command = [str(TRITON), str(SURFACE), addresses[0], "digits", "3", addresses[1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [
        "health",
        "described",
        "inference",
        "refusals",
        "extensions",
        "rows",
    ]

"""What another user of the machine can do, tried by a process that is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")

_BECOME = f"""
import http.client, json, os, sys, urllib.error, urllib.request
"".encode("idna")  # what is imported later may lie where only root can read
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
"""


def as_other_user(program: str, *arguments: str) -> str:
    """Return what a program prints that runs as a user without any rights.

    Args:
        program: Python, with the standard library alone; `json`, `os`, `sys`, `urllib` are there.
        arguments: Its `sys.argv[1:]`.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-c", _BECOME + program, *arguments],
        cwd="/",
        env={},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def folder_all_may_enter() -> Iterator[Path]:
    """Yield a new folder to which no folder above bars the way, as those of pytest would."""
    made = Path(tempfile.mkdtemp(prefix="prong-test-"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)

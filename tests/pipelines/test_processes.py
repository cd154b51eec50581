from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.core.waiting import wait_until
from pipelines.systems.processes import run_group

# A child that starts a grandchild, both deaf to SIGTERM if asked; prints the grandchild's id.
FAMILY = """
import subprocess, sys, time, pathlib
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(60)
"""


def _gone(pid: int, within: float = 30.0) -> bool:
    def gone() -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    return wait_until(gone, within)


def test_the_exit_code_comes_back(tmp_path: Path) -> None:
    code = run_group([sys.executable, "-c", "exit(7)"], cwd=tmp_path, env=os.environ)
    assert code == 7


def test_an_interrupt_ends_children_and_grandchildren(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def tick() -> None:
        if note.exists() and note.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_group(
            [sys.executable, "-c", FAMILY, str(note)], cwd=tmp_path, env=os.environ, tick=tick
        )
    assert _gone(int(note.read_text()))


WATCHER = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(float(sys.argv[2]))
from pipelines.systems.processes import end_with_keeper
end_with_keeper(0.05)
time.sleep(600)
"""
KEEPER = """
import os, pathlib, subprocess, sys
from pipelines.systems.processes import run_group
run_group([sys.executable, "-c", *sys.argv[1:]], cwd=pathlib.Path.cwd(), env=os.environ)
"""
BETWEEN = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


@pytest.mark.parametrize("loading", [0.0, 2.0])
@pytest.mark.parametrize("between", [False, True])
def test_a_child_ends_when_its_keeper_was_killed(
    tmp_path: Path, loading: float, between: bool
) -> None:
    """Also one that was still loading, and one whose parent, another process, lives on."""
    note = tmp_path / "pid"
    child = [*([BETWEEN] if between else []), WATCHER, str(note), str(loading)]
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPER, *child], cwd=Path(__file__).parents[2]
    )
    try:
        assert wait_until(lambda: note.exists() and note.read_text(), 60)
        time.sleep(0.0 if loading else 1.0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert _gone(int(note.read_text()), within=60)
    finally:
        process.kill()
        process.wait()

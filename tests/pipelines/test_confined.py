from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.core.waiting import wait_until
from pipelines.systems.confined import OUT_OF_MEMORY, ConfinedRun, Limits, run_confined
from pipelines.systems.scratch import scratch, sweep

ROOT = Path(__file__).parents[2]
WIDE = Limits(seconds=120, memory=2**30, processors=1)


def run(folder: Path, program: str, *arguments: str, limits: Limits = WIDE) -> ConfinedRun:
    command = [sys.executable, "-c", program, *arguments]
    return run_confined(command, cwd=folder, limits=limits, log=folder / "log", sources=ROOT)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_exit_code_and_output_come_back(tmp_path: Path) -> None:
    done = run(tmp_path, "print('said'); exit(7)")
    assert (done.code, done.limit, done.signal, done.output) == (7, "", "", "said")
    assert run(tmp_path, "import os; os.kill(os.getpid(), 11)").signal == "SIGSEGV"


DEAF = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


def test_time_ends_the_whole_group_also_one_that_ignores_signals(tmp_path: Path) -> None:
    limits = Limits(seconds=2, memory=2**30, processors=1)
    done = run(tmp_path, DEAF, str(tmp_path / "pid"), limits=limits)
    assert (done.limit, done.signal) == ("seconds", "SIGKILL")
    assert wait_until(lambda: gone(int((tmp_path / "pid").read_text())), 10)


def test_memory_is_refused_beyond_the_limit(tmp_path: Path) -> None:
    program = (
        "import sys\nassert len(bytearray(2**28)) == 2**28\n"
        f"try: bytearray(2**30)\nexcept MemoryError: sys.exit({OUT_OF_MEMORY})"
    )
    assert run(tmp_path, program).limit == "memory"


def test_shared_memory_which_no_limit_of_the_kernel_counts_is_watched(tmp_path: Path) -> None:
    program = (
        "import mmap, time\nheld = mmap.mmap(-1, 2**29)\n"
        "for at in range(0, 2**29, 4096): held[at] = 1\ntime.sleep(600)"
    )
    done = run(tmp_path, program, limits=Limits(seconds=120, memory=2**28, processors=1))
    assert (done.limit, done.signal) == ("memory", "SIGTERM")


def test_it_has_so_many_processors_and_no_large_files(tmp_path: Path) -> None:
    program = (
        "import os, resource\nprint(len(os.sched_getaffinity(0)), flush=True)\n"
        "open('large', 'wb').write(bytes(2**27))"
    )
    done = run(tmp_path, program)
    assert done.output.splitlines()[0] == "1"
    assert "File too large" in done.output


def test_it_knows_no_address_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "ANYTHING"):
        monkeypatch.setenv(name, "secret")
    done = run(tmp_path, "import os; print(*os.environ.values(), os.environ['HOME'])")
    assert "secret" not in done.output
    assert done.output.endswith(str(tmp_path))


# A child in which no other thread of Python can run: a library holds the interpreter's lock.
STUCK = """
import ctypes, os, pathlib, sys
from pipelines.systems.confined import end_with_parent
end_with_parent()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
ctypes.PyDLL(None).sleep(600)
"""
PARENT = """
import sys
from pathlib import Path
from pipelines.systems.confined import Limits, run_confined
from pipelines.systems.scratch import scratch
with scratch(Path(sys.argv[1]), "gates") as folder:
    command = [sys.executable, "-c", sys.argv[2], sys.argv[3]]
    limits = Limits(seconds=600, memory=2**30, processors=1)
    run_confined(command, cwd=folder, limits=limits, log=folder / "log", sources=Path.cwd())
"""


def test_a_killed_parent_takes_its_child_along_and_its_folder_is_removed_later(
    tmp_path: Path,
) -> None:
    state, note = tmp_path / "state", tmp_path / "pid"
    state.mkdir()
    (state / "gates-of-an-earlier-version").mkdir()
    (state / "other-thing").mkdir()
    command = [sys.executable, "-c", PARENT, str(state), STUCK, str(note)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        assert wait_until(lambda: note.exists() and note.read_text(), 60)
        (left,) = state.glob("gates-*")  # the earlier one was nobody's
        assert sweep(state, "gates") == []
        with scratch(state, "gates") as own:
            assert list(own.iterdir()) == []
        assert left.is_dir()  # in use
    finally:
        process.kill()
        process.wait()
    assert wait_until(lambda: gone(int(note.read_text())), 10)
    assert sweep(state, "gates") == [left]
    assert sorted(path.name for path in state.iterdir()) == ["gates.lock", "other-thing"]


def test_a_folder_is_removed_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch(tmp_path, "sign") as folder:
        (folder / "file").touch()
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["sign.lock"]
    assert sweep(tmp_path / "absent", "sign") == []

"""Waiting up to a deadline, and locks that go with their holder."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.core.waiting import wait_until
from pipelines.systems.locks import let_go, locked, take, take_shared

HOLDER = """
import sys, time
from pathlib import Path
from pipelines.systems.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_it_asks_at_once_and_a_last_time_when_patience_is_over() -> None:
    asked: list[float] = []
    start = time.monotonic()

    def never() -> bool:
        asked.append(time.monotonic() - start)
        return False

    assert not wait_until(never, 0.3, pause=0.1)
    assert asked[0] < 0.1
    assert asked[-1] >= 0.3
    assert 3 <= len(asked) <= 5
    asked.clear()
    assert not wait_until(never, 0, pause=10)
    assert len(asked) == 1


def test_pauses_grow_up_to_the_longest() -> None:
    asked: list[float] = []

    def third() -> bool:
        asked.append(time.monotonic())
        return len(asked) == 5

    assert wait_until(third, 10, pause=0.02, longest=0.04)
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    for pause, wanted in zip(pauses, (0.02, 0.03, 0.04, 0.04), strict=True):
        assert pause >= wanted
    assert sum(pauses) < 1


def test_what_it_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 / 0, 1)


def test_a_lock_is_held_by_one_process_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="lock is locked"), locked(path, patience=0.2):
            pass
        holder.send_signal(signal.SIGKILL)
        with locked(path, patience=10) as file:
            file.write("mine")
    assert path.read_text() == "mine"


def test_shared_holders_keep_a_sole_one_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a") as one, path.open("a") as other, path.open("a") as sole:
        take_shared(one)
        take_shared(other)
        assert not take(sole)
        let_go(one)
        assert not take(sole)
        let_go(other)
        assert take(sole)

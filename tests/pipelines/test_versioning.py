from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from dvc.repo import Repo

from pipelines.core.errors import Failed, UserError
from pipelines.core.waiting import wait_until
from pipelines.systems.dvc import reproduce as versioning
from pipelines.systems.dvc.reproduce import StageOutcome, ensure

# A stage as the project's own are: it leaves a record where one is asked for.
STAGE = """
import json, os, pathlib, resource, sys, time
record = pathlib.Path(os.environ["PRONG_STAGE_RECORD"])
source = pathlib.Path("source.txt").read_text()
def leave(error):
    record.write_text(json.dumps({"ran": True, "seconds": 0, "error": error}))
if source == "wrong":
    leave("source.txt: wrong"); sys.exit(2)
if source == "crash":
    leave(None); sys.exit(1)
if source == "sleep":
    pathlib.Path("pid").write_text(str(os.getpid())); time.sleep(300)
folder = pathlib.Path("out"); folder.mkdir()
if source == "full":  # for DVC, which waits for this stage
    pid = os.getppid()
    sign = b"pipelines.systems.dvc.reproduce"
    while sign not in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
        pid = int(pathlib.Path(f"/proc/{pid}/stat").read_text().split()[3])
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
(folder / "a").write_text(source); (folder / "b").write_text("constant")
leave(None)
"""
PIPELINE = """
stages:
  make:
    cmd: python stage.py
    deps: [source.txt]
    outs: [out]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "source.txt").write_text("one")
    Repo.init(str(tmp_path), no_scm=True).close()
    return tmp_path


def test_a_stage_runs_once_and_is_cached_after(root: Path) -> None:
    assert ensure(root, "make").outcome is StageOutcome.RAN
    assert ensure(root, "make").outcome is StageOutcome.CACHED
    (root / "source.txt").write_text("two")
    assert ensure(root, "make").outcome is StageOutcome.RAN
    assert (root / "out/a").read_text() == "two"


def test_an_earlier_result_is_restored_not_made_again(root: Path) -> None:
    for text in ("one", "two"):
        (root / "source.txt").write_text(text)
        ensure(root, "make")
    (root / "source.txt").write_text("one")
    assert ensure(root, "make").outcome is StageOutcome.RESTORED
    assert (root / "out/a").read_text() == "one"


def test_force_runs_what_has_not_changed(root: Path) -> None:
    ensure(root, "make")
    assert ensure(root, "make", force=True).outcome is StageOutcome.RAN


def test_a_missing_output_is_not_a_cache_hit(root: Path) -> None:
    ensure(root, "make")
    (root / "out/b").unlink()
    assert ensure(root, "make").outcome is not StageOutcome.CACHED
    assert (root / "out/b").read_text() == "constant"


def test_changed_bytes_behind_an_unchanged_time_stamp_are_seen(root: Path) -> None:
    ensure(root, "make")
    target = root / "out/a"
    before = target.stat()
    target.chmod(0o644)
    with target.open("r+") as file:
        file.write("0ne")
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert target.stat().st_size == before.st_size
    assert ensure(root, "make").outcome is not StageOutcome.CACHED
    assert target.read_text() == "one"
    assert ensure(root, "make").outcome is StageOutcome.CACHED


def test_a_damaged_cache_is_not_restored_from(root: Path) -> None:
    ensure(root, "make")
    for file in (root / ".dvc/cache/files/md5").rglob("*"):
        if file.is_file() and file.read_text() == "constant":
            file.chmod(0o644)
            file.write_text("damaged!")
            file.chmod(0o444)
    (root / "out/b").unlink()
    assert ensure(root, "make").outcome is StageOutcome.RAN
    assert (root / "out/b").read_text() == "constant"


def test_a_user_error_of_a_stage_comes_back_as_it_was_said(root: Path) -> None:
    (root / "source.txt").write_text("wrong")
    with pytest.raises(UserError) as caught:
        ensure(root, "make")
    assert str(caught.value) == "source.txt: wrong"


def test_a_crash_is_not_a_user_error(root: Path) -> None:
    (root / "source.txt").write_text("crash")
    with pytest.raises(Failed, match="make"):
        ensure(root, "make")


def test_what_dvc_itself_refuses_is_a_user_error(root: Path) -> None:
    (root / "source.txt").unlink()
    with pytest.raises(UserError, match=r"source\.txt"):
        ensure(root, "make")


def test_a_dependency_that_dvc_does_not_take_is_a_user_error(root: Path) -> None:
    (root / "source.txt").unlink()
    (root / "source.txt").mkdir()
    (root / "source.txt/.dvcignore").write_text("")
    with pytest.raises(UserError, match=r"\.dvcignore"):
        ensure(root, "make")


def test_a_disk_that_is_full_once_a_stage_is_done_is_a_user_error(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (root / "source.txt").write_text("full")
    with pytest.raises(UserError) as caught:
        ensure(root, "make")
    said = str(caught.value) + capfd.readouterr().err  # where the record could not be written
    # DVC's memory of files is a database, which has words of its own.
    assert "cannot write: the file would pass the size limit" in said or "disk I/O error" in said
    assert "Traceback" not in said
    (root / "source.txt").write_text("one")
    assert ensure(root, "make").outcome is StageOutcome.RAN


@pytest.mark.parametrize("text", ["", '{"write": {"', "[1]"])
def test_a_list_of_locks_that_broke_off_does_not_stop_later_runs(root: Path, text: str) -> None:
    ensure(root, "make")
    (root / ".dvc/tmp/rwlock").write_text(text)
    assert ensure(root, "make").outcome is StageOutcome.CACHED
    (root / ".dvc/tmp/rwlock").write_text(text)
    assert ensure(root, "make", force=True).outcome is StageOutcome.RAN


def test_an_interrupt_ends_the_stage_and_the_next_run_recovers(root: Path) -> None:
    (root / "source.txt").write_text("sleep")
    program = (
        "from pipelines.systems.dvc.reproduce import ensure; import pathlib, signal;"
        # A shell starts what is to run in the background with SIGINT ignored, and so its children.
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"ensure(pathlib.Path({str(root)!r}), 'make')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        stage = _wait_for_pid(root / "pid")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=90)
        assert _gone(stage)
    finally:
        process.kill()
        process.wait()
    (root / "source.txt").write_text("one")
    assert ensure(root, "make").outcome is StageOutcome.RAN


def test_a_busy_checkout_is_waited_for_then_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versioning, "PATIENCE", 0.5)
    (root / "source.txt").write_text("sleep")
    errors: list[BaseException] = []

    def other() -> None:
        try:
            ensure(root, "make")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    stage = _wait_for_pid(root / "pid")
    try:
        with pytest.raises(UserError, match="another run"):
            ensure(root, "make")
    finally:
        os.kill(stage, signal.SIGKILL)
        thread.join(90)
    assert [type(error) for error in errors] == [UserError]


def test_a_stage_that_is_to_run_waits_for_another_at_work(root: Path) -> None:
    (root / "source.txt").write_text("sleep")
    ends: list[object] = []

    def other(force: bool) -> None:
        try:
            ends.append(ensure(root, "make", force=force).outcome)
        except UserError as error:
            ends.append(error)

    first = threading.Thread(target=other, args=[False])
    second = threading.Thread(target=other, args=[True])
    first.start()
    stage = _wait_for_pid(root / "pid")
    second.start()
    time.sleep(3)  # by then it has met the lock
    assert second.is_alive(), ends
    (root / "source.txt").write_text("one")
    os.kill(stage, signal.SIGKILL)
    first.join(90)
    second.join(90)
    assert ends[-1] is StageOutcome.RAN, ends


def _wait_for_pid(path: Path) -> int:
    assert wait_until(lambda: path.exists() and path.read_text(), 90), f"{path} did not appear"
    return int(path.read_text())


def _gone(pid: int) -> bool:
    return wait_until(lambda: not psutil.pid_exists(pid), 90)

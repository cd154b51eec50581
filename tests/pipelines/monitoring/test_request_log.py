"""The request log: written before the answers, bounded, and read strictly, each record once."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from logged_requests import ONE, Opened, ids, some

from pipelines.serving import request_log
from pipelines.serving.request_log import now
from pipelines.serving.request_records import read_log


def test_what_is_written_is_read_with_six_digits(tmp_path: Path, opened: Opened) -> None:
    log = opened(tmp_path / "log")
    assert log.append([ONE, replace(ONE, answers=[], labels=[], drift=[], shadow=None)]) == 2
    first, second = read_log(tmp_path / "log")
    rounded = [[1.25, -2.5], [0.123457, 1e-9]]
    assert first == replace(ONE, seconds=0.00123456, answers=rounded)
    assert (second.answers, second.drift, second.shadow) == ([], [], None)
    file = next((tmp_path / "log").glob("*.jsonl"))
    assert (file.stat().st_mode & 0o777, (tmp_path / "log").stat().st_mode & 0o777) == (
        0o600,
        0o700,
    )
    assert now().endswith("+00:00")


def test_numbers_that_are_not_finite_stay_json_and_rank_last(
    tmp_path: Path, opened: Opened
) -> None:
    log = opened(tmp_path)
    log.append([replace(ONE, answers=[[np.nan, -np.inf], [1.0, 2.0]], drift=[np.nan, 1.0])])
    line = next(tmp_path.glob("*.jsonl")).read_text()
    assert json.loads(line)["drift"] == [None, 1]
    (record,) = read_log(tmp_path)
    assert record.answers == [[np.inf, np.inf], [1.0, 2.0]]
    assert record.drift == [np.inf, 1.0]


def test_large_requests_keep_their_first_examples(tmp_path: Path, opened: Opened) -> None:
    log = opened(tmp_path)
    wide = [[0.1234567] * 100] * 300
    log.append([replace(ONE, examples=300, answers=wide, labels=[1] * 300, drift=[2.0] * 300)])
    (record,) = read_log(tmp_path)
    assert (record.examples, len(record.answers), len(record.answers[0])) == (300, 256, 64)
    assert len(record.labels) == len(record.drift) == 256


def test_a_second_look_reads_nothing_twice_and_leaves_nothing_out(
    tmp_path: Path, opened: Opened
) -> None:
    log = opened(tmp_path, max_bytes=40_000)
    other = opened(tmp_path, max_bytes=40_000)
    seen, position, written = [], None, 0
    for turn in range(12):
        for who in (log, other):
            who.append(some(3 + turn, written))
            written += 3 + turn
        reader = read_log(tmp_path, position)
        seen += ids(reader)
        position = reader.position
        assert (reader.missed, reader.torn, reader.refused) == (0, 0, 0)
    assert len(list(tmp_path.glob("*.jsonl"))) > 4  # it went over several files
    assert sorted(seen) == sorted(f"r-{at}" for at in range(written))


def test_a_full_log_drops_its_oldest_files_and_a_look_says_so(
    tmp_path: Path, opened: Opened
) -> None:
    most = 64_000
    log = opened(tmp_path, max_bytes=most)
    log.append(some(1))
    reader = read_log(tmp_path)
    assert ids(reader) == ["r-0"]
    for at in range(1, 1000):
        log.append(some(1, at))
    assert most / 2 < sum(file.stat().st_size for file in tmp_path.iterdir()) <= most
    later = read_log(tmp_path, reader.position)
    found = ids(later)
    assert found[-1] == "r-999"
    assert len(found) < 999
    assert later.missed > 0
    assert read_log(tmp_path, later.position).position  # and is told once
    again = read_log(tmp_path, later.position)
    assert (ids(again), again.missed) == ([], 0)


def test_files_of_a_living_server_are_not_removed(tmp_path: Path, opened: Opened) -> None:
    quiet = opened(tmp_path, max_bytes=16_000)
    quiet.append(some(1))
    busy = opened(tmp_path, max_bytes=16_000)
    for at in range(1, 300):
        busy.append(some(1, at))
    quiet.append(some(1, 5000))
    found = ids(read_log(tmp_path))
    assert {"r-0", "r-5000"} <= set(found)


def test_a_sample_has_its_share_and_no_client_chooses_it(tmp_path: Path, opened: Opened) -> None:
    log, other = opened(tmp_path, share=0.25), opened(tmp_path, share=0.25)
    names = [f"r-{at}" for at in range(4000)]
    taken = [log.takes(name) for name in names]
    assert taken == [log.takes(name) for name in names]
    assert 850 < sum(taken) < 1150  # five standard deviations
    assert taken != [other.takes(name) for name in names]
    assert log.append(some(400)) == sum(taken[:400])
    assert log.lost == 0
    assert opened(tmp_path, share=0.0).append(some(10)) == 0


def test_inputs_are_kept_by_choice_and_go_with_their_file(tmp_path: Path, opened: Opened) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    words = np.array(["a", "ü"], dtype=object)
    log = opened(tmp_path, keep_inputs=True, max_bytes=100_000)
    log.append([ONE], [{"input": pixels, "words": words}])
    (record,) = read_log(tmp_path)
    with np.load(tmp_path / record.inputs, allow_pickle=False) as kept:
        assert (kept["input"] == pixels).all()
        assert kept["words"].tolist() == ["a", "ü"]
    for at in range(200):
        log.append(some(1, at), [{"input": np.zeros(1000, np.float32)}])
    total = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert total <= 100_000 + 5_000
    assert not (tmp_path / record.inputs).exists()
    assert all((tmp_path / one.inputs).is_file() for one in read_log(tmp_path))


def test_a_full_disk_fails_no_request_and_tears_no_line(tmp_path: Path, opened: Opened) -> None:
    log = opened(tmp_path)
    log.append(some(3))
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # room for one and a half more lines
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, limits[1]))
        assert log.append(some(4, 3)) == 1
        assert (log.lost, log.problem) == (3, "no space left on the disk")
        log.append(some(1, 50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert log.append(some(1, 60)) == 1
    assert log.problem == ""
    reader = read_log(tmp_path)
    assert ids(reader) == ["r-0", "r-1", "r-2", "r-3", "r-60"]
    assert (reader.refused, reader.torn) == (0, 0)


def test_a_record_that_is_none_fails_no_request(tmp_path: Path, opened: Opened) -> None:
    log = opened(tmp_path)
    assert log.append([replace(ONE, version="three")]) == 0  # type: ignore[arg-type]
    assert log.lost == 1
    assert "cannot be written" in log.problem


KILLED = """
import sys
from pathlib import Path
from dataclasses import replace
from logged_requests import ONE
from pipelines.serving.request_log import RequestLog
log = RequestLog(Path(sys.argv[1]))
at = 0
while True:
    log.append([replace(ONE, request=f"r-{at + n}") for n in range(7)])
    at += 7
    print(at, flush=True)
"""


def test_what_was_answered_is_in_the_log_after_sigkill(tmp_path: Path) -> None:
    here = Path(__file__).parents[1]
    path = os.pathsep.join([str(here.parents[1]), str(here)])
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )
    assert child.stdout is not None
    for _ in range(500):
        answered = int(child.stdout.readline())
    child.kill()
    rest = child.stdout.read().split()
    child.wait()
    child.stdout.close()
    answered = max([answered, *(int(one) for one in rest[:-1])])
    reader = read_log(tmp_path)
    found = ids(reader)
    assert found == [f"r-{at}" for at in range(len(found))]
    assert len(found) >= answered


def test_a_record_takes_few_microseconds(tmp_path: Path, opened: Opened) -> None:
    log = opened(tmp_path)
    ten = replace(ONE, examples=1, answers=[[0.1234567] * 10], labels=[3], drift=[1.5], shadow=None)
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            log.append([ten])
        best = min(best, (time.perf_counter() - start) / 100)
    assert best < 60e-6  # three times the aim, for busy machines
    print(f"{best * 1e6:.1f} µs")


def test_the_segments_are_small_enough_to_be_removed_one_by_one() -> None:
    assert request_log.MOST_BYTES // request_log._SEGMENTS < 2**26

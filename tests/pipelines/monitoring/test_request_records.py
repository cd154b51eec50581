"""Reading the request log: a bad line costs one line, and is counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from logged_requests import Opened, ids, some

from pipelines.serving.request_records import LONGEST_LINE, read_log

WRONG = {
    "no JSON": b"hello",
    "nothing": b"",
    "not an object": b"[1, 2]",
    "deeply nested": b"[" * 100_000 + b"]" * 100_000,
    "not UTF-8": b'{"time": "\xff\xfe"}',
    "a huge line": b'{"request": "' + b"x" * (LONGEST_LINE + 10) + b'"}',
    "a NUL": b"\0" * 100,
}


def changed(**values: object) -> bytes:
    record = {
        "time": "2026-11-02T10:00:00+00:00",
        "request": "x",
        "model": "digits-cnn",
        "version": 3,
        "sha256": "ab" * 32,
        "examples": 1,
        "seconds": 0.1,
        "answers": [[0.5]],
        "labels": [0],
    }
    return json.dumps({**record, **values}).encode()


@pytest.mark.parametrize(
    "line",
    [
        *WRONG.values(),
        changed(version="3"),
        changed(version=True),
        changed(version=-1),
        changed(version=10**30),
        changed(time="yesterday"),
        changed(time="2026-11-02T10:00:00"),
        changed(sha256="../../etc/passwd"),
        changed(model="../other"),
        changed(inputs="../../../etc/passwd"),
        changed(inputs="/etc/passwd"),
        changed(answers=[["0.5"]]),
        changed(answers=[[0.5] * 65]),
        changed(answers=[[0.5], [0.5]]),
        changed(answers=[[0.5], [0.5, 1.0]], examples=2, labels=[]),
        changed(labels=[-1]),
        changed(drift=[1.0, 2.0]),
        changed(seconds=-1),
        changed(request="x" * 129),
        changed(shadow={"version": 1, "agree": 2}),
        changed(more=1),
    ],
)
def test_a_bad_line_costs_one_line(tmp_path: Path, opened: Opened, line: bytes) -> None:
    log = opened(tmp_path)
    log.append(some(1))
    file = next(tmp_path.glob("*.jsonl"))
    with file.open("ab") as damaged:
        damaged.write(line + b"\n")
    log.append(some(1, 1))
    reader = read_log(tmp_path)
    assert ids(reader) == ["r-0", "r-1"]
    assert (reader.refused, len(reader.reasons)) == (1, 1)
    assert len(reader.reasons[0]) <= 300
    assert "\x1b" not in reader.reasons[0]


def test_only_files_of_the_log_are_read(tmp_path: Path, opened: Opened) -> None:
    opened(tmp_path).append(some(1))
    name = next(tmp_path.glob("*.jsonl")).name
    (tmp_path / "notes.jsonl").write_text("no record")
    os.mkfifo(tmp_path / name.replace("-000001", "-000002"))
    (tmp_path / name.replace("-000001", "-000003")).symlink_to("/etc/passwd")
    (tmp_path / name.replace("-000001", "-000004")).mkdir()
    reader = read_log(tmp_path)
    assert ids(reader) == ["r-0"]
    assert reader.refused == 3
    assert ids(read_log(tmp_path / "absent")) == []


def test_a_torn_last_line_waits_for_its_writer_and_counts_when_it_is_dead(
    tmp_path: Path, opened: Opened
) -> None:
    log = opened(tmp_path)
    log.append(some(2))
    file = next(tmp_path.glob("*.jsonl"))
    whole = file.read_bytes().splitlines(keepends=True)[0]
    with file.open("ab") as torn:
        torn.write(whole[:40])
    reader = read_log(tmp_path)
    assert (ids(reader), reader.torn) == (["r-0", "r-1"], 0)
    with file.open("ab") as torn:
        torn.write(whole[40:] + whole[:30])
    later = read_log(tmp_path, reader.position)
    assert (ids(later), later.torn) == (["r-0"], 0)
    log.close()
    last = read_log(tmp_path, later.position)
    assert (ids(last), last.torn) == ([], 1)
    end = read_log(tmp_path, last.position)
    assert (ids(end), end.torn) == ([], 0)

from __future__ import annotations

import json
from pathlib import Path

from pipelines.training.events import EventReader, EventWriter


def _written(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_reader_takes_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "events"
    read = EventReader(path)
    assert list(read()) == []
    emit = EventWriter(path)
    emit("step", step=1)
    assert [event["kind"] for event in read()] == ["resume", "step"]
    emit.close()
    with path.open("a") as file:
        file.write('{"kind": "st')
    assert list(read()) == []


def test_a_resumed_file_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "events"
    emit = EventWriter(path)
    emit("step", step=1)
    emit("step", step=2)
    assert emit.count == 2
    read = EventReader(path)
    assert len(list(read())) == 3
    emit.close()
    with path.open("a") as file:
        file.write('{"kind": "step", "st')  # killed here
    again = EventWriter(path, keep=1)
    again("step", step=2)
    assert again.count == 2
    again.close()
    assert [event["kind"] for event in read()] == ["resume", "step"]
    assert [e.get("step", e.get("keep")) for e in _written(path)] == [0, 1, 2, 1, 2]

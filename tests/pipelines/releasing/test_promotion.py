from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from finished_checkout import FinishedCheckout, write_model
from stored_versions import MODEL, aliases, forget, stored

from pipelines.core.errors import Failed, UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.provenance import signing
from pipelines.registry import history, version_files
from pipelines.registry import versions as registry
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release import transaction
from pipelines.release.decision import Decision
from pipelines.systems import mlflow as tracking
from pipelines.systems.onnx.runtime import OnnxModel

Make = Callable[..., FinishedCheckout]


@dataclass(frozen=True)
class Line:
    """A checkout whose models are released one after another, whatever their error."""

    make: Make

    def release(self, noise: float, run: str = "") -> Decision:
        made = self.make(noise=noise)
        params = made.with_margin(0.9)
        done = release.register(made.layout, params, run)
        return promotion.promote(made.layout, params, done.version, run)


@pytest.fixture
def line(checkout: Make) -> Line:
    return Line(checkout)


def entries(layout: Layout) -> list[dict[str, Any]]:
    found = transaction.repaired_state(layout, MODEL).history
    assert found.damage == ()
    return [entry.as_json() for entry in found.entries]


def test_the_history_says_what_was_live_when_why_and_by_which_run(
    line: Line, layout: Layout
) -> None:
    line.release(0.0, run="run-1")
    second = line.release(1.0, run="run-2")
    promotion.rollback(layout, MODEL, None, "answers were odd")
    first, other, back = entries(layout)
    assert [e["event"] for e in (first, other, back)] == ["promoted", "promoted", "rolled back"]
    assert [e["version"] for e in (first, other, back)] == [1, 2, 1]
    assert [e["replaced"] for e in (first, other, back)] == [None, 1, 2]
    assert (first["run"], other["run"], back["run"]) == ("run-1", "run-2", "")
    assert back["reason"] == "answers were odd"
    assert other["error"] == second.error
    assert first["time"] < other["time"] < back["time"]
    assert back["by"].count("@") == 1
    for entry, number in ((first, 1), (other, 2)):
        version = registry.get_version(tracking.connect(layout), MODEL, number)
        assert entry["sha256"] == version.sha256


def test_a_rollback_goes_one_step_back_each_time(line: Line, layout: Layout) -> None:
    for noise in (0.0, 1.0, 2.0):
        line.release(noise)
    assert aliases(layout) == {"champion": 3, "previous": 2}
    done = promotion.rollback(layout, MODEL, None, "")
    assert (done.version, done.replaced, done.previous) == (2, 3, 1)
    assert aliases(layout) == {"champion": 2, "previous": 1}
    promotion.rollback(layout, MODEL, None, "")
    assert aliases(layout) == {"champion": 1}
    with pytest.raises(UserError, match=r"no version is previous.*--to"):
        promotion.rollback(layout, MODEL, None, "")
    # Back to what was wrongly taken away, by name.
    assert promotion.rollback(layout, MODEL, "v3", "").previous == 2
    assert aliases(layout) == {"champion": 3, "previous": 2}


def test_the_next_run_with_nothing_new_leaves_a_rollback_alone(line: Line, layout: Layout) -> None:
    line.release(0.0)
    line.release(1.0)
    promotion.rollback(layout, MODEL, None, "answers were odd")
    again = line.release(1.0)
    assert (again.promoted, again.champion) == (False, 1)
    assert "rolled back from (answers were odd)" in again.reason
    assert aliases(layout) == {"champion": 1}
    # Only a person brings it back, through the gates.
    made = line.make(noise=1.0)
    asked = promotion.promote(layout, made.with_margin(0.9), 2, asked=True)
    assert asked.promoted
    assert aliases(layout) == {"champion": 2, "previous": 1}


def test_there_is_a_way_back_only_to_what_was_live(line: Line, layout: Layout) -> None:
    line.release(0.0)
    line.release(1.0)
    made = line.make(noise=2.0)
    release.register(made.layout, made.params, None)
    before = entries(layout)
    for to, words in {
        "3": "version 3: never was champion.*prong promote 3",
        "9": "version 9: never was champion",
        "champion": "version 2: is champion already",
        "best": r"--to 'best': allowed: a version.*challenger, champion, previous",
        "-1": "--to '-1': allowed",
    }.items():
        with pytest.raises(UserError, match=words):
            promotion.rollback(layout, MODEL, to, "")
    assert aliases(layout) == {"champion": 2, "previous": 1, "challenger": 3}
    assert entries(layout) == before


@pytest.mark.parametrize("damage", ["gone", "exchanged", "silent"])
def test_a_version_that_does_not_answer_is_not_rolled_back_to(
    line: Line, layout: Layout, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.release(0.0)
    line.release(1.0)
    before = entries(layout)
    forget(layout)
    path, words, kind = stored(layout, 1), damage, UserError
    if damage == "gone":
        path.unlink()
    elif damage == "exchanged":
        shutil.copy(layout.onnx, path)
    else:  # its bytes are those that were registered, and its answers are not numbers
        card = OnnxModel.load(path, "cpu").card
        pixels = card.channels * card.size**2
        write_model(path, np.full((pixels + 1, len(card.classes)), 1e38, np.float32), card)
        client = tracking.connect(layout)
        sha256 = sha256_file(path)
        client.set_model_version_tag(MODEL, "1", registry.SHA256, sha256)
        signing.sign(layout, path, path.with_name(version_files.SIGNATURE))
        words, kind = "probabilities|not finite", (UserError, Failed)  # type: ignore[assignment]
    with pytest.raises(kind, match=words):
        promotion.rollback(layout, MODEL, None, "")
    assert aliases(layout) == {"champion": 2, "previous": 1}
    assert entries(layout) == before


def test_aliases_moved_by_hand_are_recorded_and_kept(line: Line, layout: Layout) -> None:
    line.release(0.0)
    line.release(1.0)
    client = tracking.connect(layout)
    client.set_registered_model_alias(MODEL, "champion", "1")
    last = entries(layout)[-1]
    assert (last["event"], last["version"], last["replaced"]) == ("moved by hand", 1, 2)
    client.delete_registered_model_alias(MODEL, "champion")
    last = entries(layout)[-1]
    assert (last["event"], last["version"], last["replaced"]) == ("moved by hand", None, 1)
    assert len(entries(layout)) == 4
    # A version that is not whole is never live, whoever pointed at it.
    foreign = client.create_model_version(MODEL, str(layout.root))
    client.set_registered_model_alias(MODEL, "champion", foreign.version)
    assert len(entries(layout)) == 4
    assert "champion" not in aliases(layout)


def test_a_registry_older_than_its_history_gets_one(line: Line, layout: Layout) -> None:
    made = line.make()
    release.register(made.layout, made.params, None)
    tracking.connect(layout).set_registered_model_alias(MODEL, "champion", "1")
    (entry,) = entries(layout)
    assert (entry["event"], entry["version"]) == ("found", 1)


def test_a_change_of_the_history_is_noticed(line: Line, layout: Layout) -> None:
    for noise in (0.0, 1.0, 2.0):
        line.release(noise)
    client = tracking.connect(layout)
    said = dict(client.get_registered_model(MODEL).tags)
    key = f"{history.PREFIX}{2:08d}"
    changes = {
        "entry 2 was changed": json.dumps({**json.loads(said[key]), "by": "someone@else"}),
        "entry 2 cannot be read": "gone",
    }
    for words, text in changes.items():
        client.set_registered_model_tag(MODEL, key, text)
        found = transaction.read_state(client, MODEL).history
        assert found.damage[0] == words
    client.delete_registered_model_tag(MODEL, key)
    found = transaction.read_state(client, MODEL).history
    assert "entry 2 is gone" in found.damage
    assert "entry 3 does not follow on the entry before it" in found.damage
    # A damaged history does not prevent a rollback.
    promotion.rollback(layout, MODEL, "1", "")
    assert aliases(layout)["champion"] == 1


def test_an_exchanged_entry_with_a_hash_of_its_own_breaks_the_chain() -> None:
    blank = dict.fromkeys(("time", "event", "by", "run", "reason", "sha256"), "")
    entry = history.Entry(
        sequence=0, version=1, replaced=None, previous=None, error=None, intent="x", **blank
    )
    first = entry.chained(1, "")
    second = entry.chained(2, first.hash)
    assert history.read(dict((first.tag(), second.tag()))).damage == ()
    forged = replace(entry, reason="another").chained(1, "")
    found = history.read(dict((forged.tag(), second.tag())))
    assert found.damage == ("entry 2 does not follow on the entry before it",)


def test_a_long_history_is_read_whole(line: Line, layout: Layout) -> None:
    import sqlite3

    line.release(0.0)
    found = transaction.repaired_state(layout, MODEL).history
    last = found.last
    assert last is not None
    rows, before = [], last
    for _ in range(1200):
        before = replace(last, intent=f"i{len(rows)}").chained(before.sequence + 1, before.hash)
        rows.append((*before.tag(), MODEL))
    with sqlite3.connect(layout.state / "mlflow.db") as connection:
        statement = "insert into registered_model_tags (key, value, name) values (?, ?, ?)"
        columns = [row[1] for row in connection.execute("pragma table_info(registered_model_tags)")]
        if "workspace" in columns:
            statement = (
                "insert into registered_model_tags (key, value, name, workspace) values "
                "(?, ?, ?, (select workspace from registered_models limit 1))"
            )
        connection.executemany(statement, rows)
    connection.close()
    assert len(entries(layout)) == 1201
    line.release(1.0)
    assert [e["sequence"] for e in entries(layout)[-2:]] == [1201, 1202]

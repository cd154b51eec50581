from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_checkout import FinishedCheckout, write_model
from starts import Starts
from stored_versions import MODEL, aliases, forget, stored

from pipelines.core.errors import Failed, UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.provenance import keys
from pipelines.registry import history, version_files
from pipelines.registry import versions as registry
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release import transaction
from pipelines.release.decision import Decision
from pipelines.release.repair import repair
from pipelines.systems import mlflow as tracking
from pipelines.systems.onnx.runtime import OnnxModel

Make = Callable[..., FinishedCheckout]


@dataclass(frozen=True)
class Line:
    """A checkout whose models are released one after another, whatever their error."""

    make: Make
    layout: Layout
    starts: Starts

    def begin(self, *noises: float) -> None:
        """Begin with so many releases made, the same as by `release`."""
        self.starts.released(self.layout, *noises)

    def release(self, noise: float, run: str = "") -> Decision:
        made = self.make(noise=noise)
        params = made.with_margin(0.9)
        done = release.register(made.layout, params, run)
        return promotion.promote(made.layout, params, done.version, run)


@pytest.fixture
def line(checkout: Make, layout: Layout, starts: Starts) -> Line:
    return Line(checkout, layout, starts)


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
    line.begin(0.0, 1.0, 2.0)
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
    line.begin(0.0, 1.0)
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
    line.begin(0.0, 1.0)
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


@pytest.mark.parametrize("damage", ["gone", "exchanged"])
def test_a_version_that_is_damaged_is_not_rolled_back_to(
    line: Line, layout: Layout, damage: str
) -> None:
    line.begin(0.0, 1.0)
    before = entries(layout)
    forget(layout)
    path = stored(layout, 1)
    path.unlink() if damage == "gone" else shutil.copy(layout.onnx, path)
    with pytest.raises(UserError, match=damage):
        promotion.rollback(layout, MODEL, None, "")
    assert aliases(layout) == {"champion": 2, "previous": 1}
    assert entries(layout) == before


def test_a_version_that_does_not_answer_is_not_rolled_back_to(line: Line, layout: Layout) -> None:
    """Its statement is one of the key's holder: only asking it tells."""
    line.begin(0.0, 1.0)
    before, path = entries(layout), stored(layout, 1)
    card = OnnxModel.load(path, "cpu").card
    pixels = card.form.channels * card.form.size**2
    weights = np.full((pixels + 1, len(card.classes)), 1e38, np.float32)
    with transaction.transaction(layout, MODEL) as held:
        silent = version_files.required_statement(layout, held.client, held.state(), 1)
        write_model(path, weights, card)
        silent = replace(silent, sha256=sha256_file(path)).signed(held.key())
        held.write_statement(silent)
        entry = held.same(held.state().history.entries[-1], "promoted", "")
        held.append(replace(entry, version=1, sha256=silent.sha256, statement=silent.hash))
        entry = before[1] | {"intent": "back"}
        held.append(history.Entry(**{**entry, "sequence": 0, "hash": "", "before": ""}))
        held.put_back_aliases()
    before = entries(layout)
    with pytest.raises((UserError, Failed), match=r"its answers are none|not finite"):
        promotion.rollback(layout, MODEL, "1", "")
    assert entries(layout) == before


def test_an_alias_moved_by_hand_is_never_obeyed(line: Line, layout: Layout) -> None:
    line.begin(0.0, 1.0)
    before, client = entries(layout), tracking.connect(layout)
    made = line.make(noise=200.0)
    refused = release.register(layout, made.params, None).version
    assert not promotion.promote(layout, made.params, refused).promoted
    for alias, target in (("champion", str(refused)), ("champion", "1"), ("previous", "3")):
        client.set_registered_model_alias(MODEL, alias, target)
        found = version_files.champion(layout, MODEL)
        assert found.version == 2
        assert "an alias says otherwise" in found.warnings[0]
        # The next command puts it back.
        assert entries(layout) == before
        assert aliases(layout) == {"champion": 2, "previous": 1, "challenger": refused}
    client.set_registered_model_alias(MODEL, "champion", str(refused))
    done = promotion.promote(layout, made.params, refused, asked=True)
    assert (done.promoted, done.champion) == (False, 2)
    with pytest.raises(UserError, match="never was champion"):
        promotion.rollback(layout, MODEL, str(refused), "")
    assert version_files.champion(layout, MODEL).version == 2
    client.delete_registered_model_alias(MODEL, "champion")
    assert version_files.champion(layout, MODEL).version == 2
    foreign = client.create_model_version(MODEL, str(layout.root))
    client.set_registered_model_alias(MODEL, "champion", foreign.version)
    assert version_files.champion(layout, MODEL).version == 2
    assert entries(layout) == before


def test_a_champion_that_nobody_signed_is_not_answered_from(line: Line, layout: Layout) -> None:
    made = line.make()
    release.register(made.layout, made.params, None)
    tracking.connect(layout).set_registered_model_alias(MODEL, "champion", "1")
    with pytest.raises(version_files.NotReleased, match="prong migrate"):
        version_files.champion(layout, MODEL)
    with pytest.raises(UserError, match="prong migrate"):
        promotion.promote(layout, made.params, 1)


def test_a_change_of_the_history_is_noticed_and_mended(line: Line, layout: Layout) -> None:
    line.begin(0.0, 1.0, 2.0)
    client = tracking.connect(layout)
    said = dict(client.get_registered_model(MODEL).tags)
    key, last = history.tag_key(2), history.tag_key(3)
    forged = json.dumps({**json.loads(said[last]), "version": 1, "sequence": 4})
    changes = (
        ("entry 2 was changed", key, json.dumps({**json.loads(said[key]), "by": "someone@else"})),
        ("entry 2 was changed", key, "gone"),
        ("entry 2 is gone", key, None),
        ("entry 3 is gone", last, None),
        ("entry 4 is not signed", history.tag_key(4), forged),
    )
    for words, name, text in changes:
        if text is None:
            client.delete_registered_model_tag(MODEL, name)
        else:
            client.set_registered_model_tag(MODEL, name, text)
        found = version_files.champion(layout, MODEL)  # as this checkout remembers it
        assert (found.version, len(found.warnings)) == (3, 1)
        assert words in found.warnings[0]
        with pytest.raises(UserError, match=rf"{words}.*prong repair"):
            promotion.rollback(layout, MODEL, "1", "")
        done = repair(layout, MODEL)
        assert done
        assert all(one.mended for one in done)
        assert client.get_registered_model(MODEL).tags == said
        assert entries(layout)


def test_what_nobody_remembers_can_be_given_up(line: Line, layout: Layout) -> None:
    line.begin(0.0, 1.0, 2.0)
    client = tracking.connect(layout)
    client.delete_registered_model_tag(MODEL, history.tag_key(2))
    shutil.rmtree(layout.state / "remembered")  # as in a fresh clone
    assert version_files.champion(layout, MODEL).version == 3
    lost = repair(layout, MODEL)[0]
    assert (lost.mended, lost.found) == (False, "entry 2 is gone")
    assert "--begin-anew" in lost.done
    assert all(one.mended for one in repair(layout, MODEL, begin_anew=True))
    assert [e["version"] for e in entries(layout)] == [3]
    assert version_files.champion(layout, MODEL).version == 3
    assert repair(layout, MODEL) == []
    line.release(3.0)
    promotion.rollback(layout, MODEL, None, "")
    assert [e["version"] for e in entries(layout)] == [3, 4, 3]


def test_a_history_of_another_key_or_model_counts_for_nothing(
    tmp_path: Path, line: Line, layout: Layout
) -> None:
    line.begin(0.0)
    client = tracking.connect(layout)
    tags = dict(client.get_registered_model(MODEL).tags)
    trusted = keys.trusted_keys(layout)
    assert history.read(tags, MODEL, trusted).live == 1
    assert history.read(tags, "another", trusted).live is None
    keys.signing_key(Layout(tmp_path / "other"), may_make=True)
    found = history.read(tags, MODEL, keys.trusted_keys(Layout(tmp_path / "other")))
    assert (found.live, found.entries) == (None, ())
    assert "no trusted key signed it" in found.damage[0]


@pytest.mark.slow
def test_a_long_history_is_read_whole(line: Line, layout: Layout) -> None:
    import sqlite3

    line.begin(0.0)
    found = transaction.repaired_state(layout, MODEL).history
    last, private = found.last, keys.signing_key(layout)
    assert last is not None
    rows, listed = [], found
    for number in range(2, 1202):
        before = listed.append(replace(last, intent=f"i{number}"), MODEL, private)
        rows.append((history.tag_key(number), before.text(), MODEL))
        listed = replace(listed, entries=(before,), next=number + 1)
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

"""Whatever a registry holds: no traceback, nothing written elsewhere, nothing answered from."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finished_checkout import FinishedCheckout
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_versions import MODEL

from pipelines.core.errors import Failed, UserError
from pipelines.core.paths import Layout
from pipelines.provenance import keys
from pipelines.registry import history, intents, outside, state, statements, version_files
from pipelines.registry import versions as registry
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release.health import standing
from pipelines.release.transaction import repaired_state
from pipelines.systems import mlflow as tracking

Make = Callable[..., FinishedCheckout]
HOSTILE = (
    *("", " ", "\x00", "\x1b]0;x\x07", "[/srv/cam3]", "../../models/model", "/etc/passwd", "NaN"),
    *("-1", "0", "1e999", "9" * 40, "٣", "true", "null", "[]", "{}", "{" * 400, "a" * 64, "A" * 64),
    *("\ud800", "‮", "champion", "%s%n", "${HOME}", "'; drop table versions; --"),
)
FULL = bool(os.environ.get("PRONG_TEST_FULL"))
FEW, MANY = 250, 4000
"""Cases in a quick run, and in `make test-full`: more than 10,000 in all."""
TEXTS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=60),
    st.text(alphabet=string.hexdigits, min_size=60, max_size=68),
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.lists(TEXTS, max_size=2)
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A signed entry, statement and intent, and the keys that count."""
    layout = Layout(tmp_path_factory.mktemp("keys"))
    private = keys.signing_key(layout, may_make=True)
    entry = history.Entry(
        sequence=0,
        time="2026-01-01T00:00:00.000+00:00",
        event="promoted",
        version=1,
        replaced=None,
        previous=None,
        by="a@b",
        run="",
        reason="first",
        sha256="a" * 64,
        error=0.5,
        intent="1",
        statement="b" * 64,
    )
    listed = history.read({}, MODEL, ())
    statement = statements.Statement(
        model=MODEL,
        version=1,
        created="2026-01-01T00:00:00.000+00:00",
        sha256="a" * 64,
        size=1,
        classes=2,
        classes_sha256="c" * 64,
        gates=(statements.Passed("champion", 0.1, None),),
        limits="d" * 64,
        gate_split="e" * 64,
        held_against=None,
        error=0.1,
        images=10,
        made_from={"data_hash": "f" * 64},
        time="2026-01-01T00:00:00.000+00:00",
        by="a@b",
        run="",
    ).signed(private)
    intent = intents.Intent("promote", "1", aliases={"champion": 1}, entry=entry)
    return {
        "trusted": keys.trusted_keys(layout),
        "entry": listed.append(entry, MODEL, private).text(),
        "statement": statement,
        "intent": intent.signed(MODEL, private).text(),
    }


def changed(text: str, key: str, value: object) -> str:
    """Return JSON with another value under a key."""
    found: dict[str, Any] = json.loads(text)
    return json.dumps({**found, key: value})


def keys_of(text: str) -> list[str]:
    return [*json.loads(text), "unknown"]


@settings(max_examples=MANY if FULL else FEW)
@given(data=st.data())
def test_no_field_of_an_entry_can_be_changed(real: Mapping[str, Any], data: st.DataObject) -> None:
    key, value = data.draw(st.sampled_from(keys_of(real["entry"]))), data.draw(VALUES)
    text = data.draw(st.sampled_from([changed(real["entry"], key, value), str(value)]))
    found = history.read({history.tag_key(1): text}, MODEL, real["trusted"])
    assert found.live is None or text == changed(real["entry"], key, json.loads(real["entry"])[key])
    assert found.damage or found.live == 1


@settings(max_examples=MANY if FULL else FEW)
@given(data=st.data())
def test_no_field_of_a_statement_can_be_changed(
    real: Mapping[str, Any], data: st.DataObject
) -> None:
    good: statements.Statement = real["statement"]
    key, value = data.draw(st.sampled_from(keys_of(good.text))), data.draw(VALUES)
    text = data.draw(st.sampled_from([changed(good.text, key, value), str(value)]))
    found = statements.find(
        {statements.tag_key(good.hash): text},
        real["trusted"],
        model=MODEL,
        version=1,
        wanted=good.hash,
    )
    assert found is None or found == good


@settings(max_examples=MANY if FULL else FEW)
@given(data=st.data())
def test_no_field_of_an_intent_can_be_changed(real: Mapping[str, Any], data: st.DataObject) -> None:
    key, value = data.draw(st.sampled_from(keys_of(real["intent"]))), data.draw(VALUES)
    text = data.draw(st.sampled_from([changed(real["intent"], key, value), str(value)]))
    found = intents.read(text, MODEL, real["trusted"])
    assert (found.intent is None) == bool(found.wrong)
    if found.intent is not None:
        assert found.intent.text() == real["intent"]


@settings(max_examples=MANY if FULL else FEW)
@given(
    named=st.dictionaries(TEXTS, VALUES, max_size=3),
    tags=st.dictionaries(st.one_of(TEXTS, st.just(registry.SHA256)), TEXTS, max_size=4),
    number=VALUES,
    created=VALUES,
)
def test_any_version_and_alias_is_read_or_left_out(
    named: dict[str, Any], tags: dict[str, str], number: Any, created: Any
) -> None:
    read, wrong = outside.aliases(named)
    assert all(0 < target < 10**9 for target in read.values())
    assert set(read) | set(wrong) == set(named)
    found = registry._version(
        SimpleNamespace(  # type: ignore[arg-type]
            name=MODEL,
            version=number,
            creation_timestamp=created,
            status=created,
            run_id=number,
            tags=tags,
        ),
        read,
    )
    if found is None:
        return
    assert found.sha256 == "" or set(found.sha256) <= set("0123456789abcdef")
    json.dumps(found.as_json(), allow_nan=False)
    path = version_files.cached_file(Layout(Path("/somewhere")), found.sha256)
    assert path.parent == Path("/somewhere/.prong/cache")


def test_garbage_in_a_real_registry_is_named_and_never_answered_from(
    checkout: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through MLflow itself: tags of the model and of the champion's version, and its aliases."""
    made = checkout()
    release.register(made.layout, made.params, None)
    promotion.promote(made.layout, made.params, 1)
    layout, client = made.layout, tracking.connect(made.layout)
    with tracking.answering(layout):
        before = state.read_state(layout, client, MODEL)
    places = {
        "model": [history.tag_key(1), history.tag_key(7), intents.INTENT, "prong.history.x"],
        "version": [registry.SHA256, registry.COMPLETE, "prong.question", "gate.champion",
                    "metric.gate_error", *statement_tags(layout)],
    }  # fmt: skip
    for text in HOSTILE if FULL else HOSTILE[3::5]:
        if not text.strip("\x00 ") or (not text.isprintable() and "\ud800" in text):
            continue
        for key in places["model"]:
            client.set_registered_model_tag(MODEL, key, text)
        for key in places["version"]:
            client.set_model_version_tag(MODEL, "1", key, text)
        for ask in (
            lambda: standing(layout, MODEL).problems,
            lambda: repaired_state(layout, MODEL),
            lambda: registry.list_versions(layout, MODEL)[0].as_json(),
            lambda: promotion.promote(layout, made.params, 1),
            lambda text=text: promotion.rollback(layout, MODEL, None, text),
        ):
            try:
                ask()
            except (UserError, Failed):
                continue
        found = version_files.champion(layout, MODEL)
        assert found.version == 1
        assert found.statement.sha256 == before.history.entries[-1].sha256
    outside_of = {p.name for p in layout.root.iterdir()}
    assert outside_of == {".prong", "data", "models", "reports"}


def statement_tags(layout: Layout) -> list[str]:
    tags = registry.list_versions(layout, MODEL)[0].tags
    return [key for key in tags if key.startswith(statements.PREFIX)]

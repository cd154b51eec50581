"""Intents: signed, carried out once and on the history they were written for, or dropped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
from finished_checkout import FinishedCheckout
from stored_versions import MODEL, aliases

from pipelines.core.paths import Layout
from pipelines.provenance import keys
from pipelines.registry import version_files
from pipelines.registry.intents import INTENT, Intent
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release.transaction import repaired_state
from pipelines.systems import mlflow as tracking

Make = Callable[..., FinishedCheckout]


@pytest.fixture
def two(layout: Layout, refused: Layout) -> Layout:
    """Version 1 is champion; version 2 was refused."""
    shutil.rmtree(layout.root)
    shutil.copytree(refused.root, layout.root)
    return layout


def intent_for(layout: Layout, version: int, statement: str = "") -> Intent:
    """Return what a promotion of a version would write down, not signed."""
    last = repaired_state(layout, MODEL).history.last
    assert last is not None
    entry = replace(
        last,
        sequence=0,
        version=version,
        previous=1,
        statement=statement,
        intent=f"intent-{version}",
        sha256="",
    )
    wanted: dict[str, int | None] = {"previous": 1, "champion": version}
    return Intent("promote", entry.intent, after=last.hash, aliases=wanted, entry=entry)


def left_behind(layout: Layout, intent: Intent, *, sign: bool = True) -> None:
    """Leave an intent as a command that died would."""
    text = (intent.signed(MODEL, keys.signing_key(layout)) if sign else intent).text()
    tracking.connect(layout).set_registered_model_tag(MODEL, INTENT, text)


def still_well(layout: Layout, said: str) -> None:
    """Check that the next command drops the intent, writes that down, and version 1 is live."""
    state = repaired_state(layout, MODEL)
    last = state.history.last
    assert state.is_well
    assert last is not None
    assert (last.event, last.version, last.replaced) == ("intent dropped", 1, 1)
    assert said in last.reason
    assert aliases(layout) == {"champion": 1, "challenger": 2}
    assert version_files.champion(layout, MODEL).version == 1
    assert repaired_state(layout, MODEL).history == state.history


def test_an_intent_that_nobody_signed_moves_nothing(two: Layout) -> None:
    layout = two
    left_behind(layout, intent_for(layout, 2), sign=False)
    found = version_files.champion(layout, MODEL)
    assert found.version == 1
    assert "not signed by a trusted key" in found.warnings[0]
    still_well(layout, "not signed by a trusted key")


def test_an_intent_signed_for_another_model_moves_nothing(two: Layout) -> None:
    layout = two
    foreign = intent_for(layout, 2).signed("another", keys.signing_key(layout))
    tracking.connect(layout).set_registered_model_tag(MODEL, INTENT, foreign.text())
    still_well(layout, "not signed by a trusted key")


def test_an_intent_to_release_what_no_gate_let_through_is_dropped(two: Layout) -> None:
    left_behind(two, intent_for(two, 2, statement="a" * 64))
    still_well(two, "version 2 is gone or was never let through")


def test_an_intent_that_names_a_deleted_version_is_dropped(two: Layout) -> None:
    left_behind(two, intent_for(two, 9))
    still_well(two, "version 9 is gone")


def test_an_intent_of_another_time_is_dropped(two: Layout) -> None:
    layout = two
    old = intent_for(layout, 2)
    left_behind(layout, intent_for(layout, 9))
    repaired_state(layout, MODEL)  # the history has gone on since
    left_behind(layout, old)
    still_well(layout, "written on another history")


def test_an_intent_that_was_carried_out_is_not_carried_out_again(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    layout, client = made.layout, tracking.connect(made.layout)
    kept: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        from pipelines.release.transaction import Transaction

        def carry_out(held: Transaction, intent: Intent) -> None:
            kept.append(intent.text())
            real(held, intent)

        real = Transaction.carry_out
        patch.setattr(Transaction, "carry_out", carry_out)
        promotion.promote(layout, made.params, 1)
    made = checkout(noise=1.0)
    release.register(layout, made.params, None)
    assert promotion.promote(layout, made.with_margin(0.9), 2).promoted
    before = repaired_state(layout, MODEL).history
    client.set_registered_model_tag(MODEL, INTENT, kept[0])  # of version 1
    state = repaired_state(layout, MODEL)
    assert (state.history, state.live, state.intent) == (before, 2, None)
    assert aliases(layout) == {"champion": 2, "previous": 1}


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", '{"command": "promote", "id": "1"}', "9" * 4999]
)
def test_an_intent_that_is_none_is_dropped(two: Layout, text: str) -> None:
    tracking.connect(two).set_registered_model_tag(MODEL, INTENT, text or " ")
    still_well(two, "it was removed")


def test_an_unfinished_promotion_is_finished_by_the_next_command(two: Layout) -> None:
    """The same, signed, of a version that was let through: what a crash leaves."""
    layout = two
    entry = repaired_state(layout, MODEL).history.release_of(1)
    assert entry is not None
    intent = intent_for(layout, 1, statement=entry.statement)
    left_behind(layout, intent)
    state = repaired_state(layout, MODEL)
    assert state.history.last is not None
    assert (state.history.last.intent, state.live, state.intent) == (intent.id, 1, None)
    assert json.loads(state.history.last.text())["signature"]

"""A registry of the time before signed statements goes on after one command; nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest
from finished_checkout import FinishedCheckout
from stored_versions import MODEL, aliases, stored

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_json
from pipelines.core.paths import Layout
from pipelines.provenance import keys, signing
from pipelines.registry import history, version_files
from pipelines.registry import versions as registry
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release.health import standing
from pipelines.release.migrate import migrate
from pipelines.release.repair import repair
from pipelines.release.transaction import repaired_state
from pipelines.systems import mlflow as tracking

Make = Callable[..., FinishedCheckout]
OLD_ENTRY = (
    '{"sequence":1,"time":"2026-05-01T08:30:00.123+00:00","event":"promoted","version":1,'
    '"replaced":null,"previous":null,"by":"ann@box","run":"flow-1",'
    '"reason":"13 of 64 wrong; the first champion","sha256":"' + 64 * "a" + '","error":0.203125,'
    '"intent":"0123456789abcdef0123456789abcdef","before":"",'
    '"hash":"d8f706cabad2ad19b959c6f9704797582c0984c2f7e819516291c41d991d5f56"}'
)
"""As an earlier version of the program wrote it."""


def test_an_entry_of_before_is_read_as_it_was_written() -> None:
    found = history.read({history.tag_key(1): OLD_ENTRY}, MODEL, ())
    assert found.damage == ()
    assert (found.signed, found.live, len(found.entries)) == (False, None, 1)
    assert found.entries[0].text() == OLD_ENTRY
    changed = OLD_ENTRY.replace("ann@box", "eve@box")
    found = history.read({history.tag_key(1): changed}, MODEL, ())
    assert found.damage == ("entry 1 was changed",)


def as_before(layout: Layout, changes: list[tuple[int, int | None, int | None]]) -> None:
    """Leave a registry as the earlier version did: signed at registration, an unsigned list.

    Args:
        layout: A checkout with registered versions.
        changes: Champion, the one it replaced, and previous, one for each entry.
    """
    client, before = tracking.connect(layout), ""
    private = keys.signing_key(layout)
    shutil.rmtree(private.parent / "trusted")
    for version in registry.list_versions(layout, MODEL):
        path = stored(layout, version.number)
        signing.sign(layout, path, path.with_name(version_files.SIGNATURE))
    shutil.rmtree(private.parent / "trusted")
    for at, (version, replaced, previous) in enumerate(changes, 1):
        values = {**json.loads(OLD_ENTRY), "sequence": at, "version": version, "before": before}
        values |= {"replaced": replaced, "previous": previous, "intent": f"{at:032x}"}
        values["sha256"] = registry.get_version(client, MODEL, version).sha256
        values["hash"] = before = sha256_json({k: v for k, v in values.items() if k != "hash"})
        client.set_registered_model_tag(MODEL, history.tag_key(at), json.dumps(values))
    champion, _, previous = changes[-1]
    client.set_registered_model_alias(MODEL, "champion", str(champion))
    if previous is not None:
        client.set_registered_model_alias(MODEL, "previous", str(previous))


@pytest.mark.slow
def test_a_registry_of_before_goes_on_after_one_command(checkout: Make) -> None:
    for noise in (0.0, 1.0, 2.0):
        made = checkout(noise=noise)
        release.register(made.layout, made.params, None)
    layout, params = made.layout, made.with_margin(0.9)
    as_before(layout, [(1, None, None), (2, 1, 1), (3, 2, 2), (2, 3, 1)])
    old = repaired_state(layout, MODEL).history.entries
    assert [entry.version for entry in old] == [1, 2, 3, 2]

    # Until then nothing is answered, and each command says what to type.
    with pytest.raises(version_files.NotReleased, match="prong migrate"):
        version_files.champion(layout, MODEL)
    for ask in (
        lambda: promotion.promote(layout, params, 3),
        lambda: promotion.rollback(layout, MODEL, None, ""),
    ):
        with pytest.raises(UserError, match="prong migrate"):
            ask()
    assert "prong migrate" in str(standing(layout, MODEL).problems[0])
    assert [one.mended for one in repair(layout, MODEL)] == [False]
    assert aliases(layout)["champion"] == 2

    said: list[str] = []
    assert migrate(layout, params, as_is=False, say=said.append) == 2
    assert said == [f"v{number}: every gate lets it through" for number in (2, 1, 3)]
    state = repaired_state(layout, MODEL)
    assert state.is_well
    assert state.history.entries[:4] == old
    last = state.history.last
    assert last is not None
    assert (last.event, last.version, last.previous) == ("migrated", 2, 1)
    assert standing(layout, MODEL).problems == ()
    assert version_files.champion(layout, MODEL).version == 2
    # Back and forth as before, also to what was live before there were statements.
    assert promotion.rollback(layout, MODEL, None, "").version == 1
    assert promotion.rollback(layout, MODEL, "3", "").version == 3
    assert promotion.promote(layout, params, 2, asked=True).promoted
    with pytest.raises(UserError, match="nothing to take over: its history is signed"):
        migrate(layout, params, as_is=True, say=said.append)


def test_what_the_gates_refuse_is_not_taken_over_unless_a_person_vouches(checkout: Make) -> None:
    made = checkout(noise=1e4)  # no better than guessing
    release.register(made.layout, made.params, None)
    layout, said = made.layout, list[str]()
    as_before(layout, [(1, None, None)])
    with pytest.raises(UserError, match="--as-is"):
        migrate(layout, made.params, as_is=False, say=said.append)
    assert "v1: not taken over: floor" in said[0]
    assert not repaired_state(layout, MODEL).history.signed
    assert migrate(layout, made.params, as_is=True, say=said.append) == 1
    last = repaired_state(layout, MODEL).history.last
    assert last is not None
    assert "not by the gates" in last.reason
    assert version_files.champion(layout, MODEL).statement.gates == ()


def test_a_changed_list_or_exchanged_bytes_are_not_taken_over(checkout: Make) -> None:
    for noise in (0.0, 1.0):
        made = checkout(noise=noise)
        release.register(made.layout, made.params, None)
    layout, said = made.layout, list[str]()
    as_before(layout, [(1, None, None), (2, 1, 1)])
    client = tracking.connect(layout)
    shutil.copy(stored(layout, 2), stored(layout, 1))
    key = history.tag_key(1)
    text = client.get_registered_model(MODEL).tags[key]
    client.set_registered_model_tag(MODEL, key, text.replace("ann@box", "eve@box"))
    with pytest.raises(UserError, match="its list was changed: entry 1 was changed"):
        migrate(layout, made.params, as_is=False, say=said.append)
    client.set_registered_model_tag(MODEL, key, text)
    assert migrate(layout, made.with_margin(0.9), as_is=False, say=said.append) == 2
    assert "v1: not taken over: the registry's file is not the one" in said[1]
    assert repaired_state(layout, MODEL).previous is None

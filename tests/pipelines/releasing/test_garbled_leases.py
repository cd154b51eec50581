"""Leases and identities that others wrote over: read by one strict parser, with one rule each."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.entities.model_registry import RegisteredModel
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.systems import liveness
from pipelines.systems import mlflow as tracking
from pipelines.systems.liveness import described, gone, holder_of, identity
from pipelines.systems.mlflow import server_leases
from pipelines.systems.mlflow.leases import TableLeases, leased

NAME = "registry m"
TIMES = 1 if os.environ.get("PRONG_TEST_FULL") else 4  # a quarter of the examples is quick
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
values: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | texts
    | st.sampled_from(["", "0", "-1", "١٢", "1e400", "nan", "inf", " 1", "1_0", "9" * 40, "\0"])
)
cells = values | st.binary(max_size=8)
identities = st.builds(
    lambda changed: {**identity(), **changed},
    st.dictionaries(st.sampled_from(list(identity())), values | st.just({}), max_size=5),
)
holders = (
    cells
    | st.recursive(values, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v)).map(
        json.dumps
    )
    | identities.map(json.dumps)
    | st.just("[" * 5000)
    | st.just('{"prong.pid": ' + "1" * 5000 + "}")
)


@pytest.fixture(scope="module")
def table() -> Iterator[tuple[TableLeases, sqlite3.Connection]]:
    """Leases in memory, in a table that takes anything."""
    store = TableLeases("sqlite://")
    store._engine = create_engine("sqlite://", poolclass=StaticPool)
    raw = store._engine.raw_connection()
    connection = raw.driver_connection
    assert isinstance(connection, sqlite3.Connection)
    connection.execute(
        "CREATE TABLE prong_leases (name VARCHAR(250) PRIMARY KEY, token INTEGER, "
        "holder VARCHAR(1000), expires FLOAT)"
    )
    yield store, connection
    raw.close()
    store._engine.dispose()


@settings(max_examples=900 // TIMES)
@given(cells | st.just(7), holders, cells | st.just(time.time() + 900))
def test_no_row_of_the_table_stops_the_next_one(
    table: tuple[TableLeases, sqlite3.Connection], token: Any, holder: Any, expires: Any
) -> None:
    store, connection = table
    connection.execute("DELETE FROM prong_leases")
    connection.execute(
        "INSERT INTO prong_leases VALUES (?, ?, CASE WHEN ? THEN CAST(? AS TEXT) ELSE ? END, ?)",
        (NAME, token, isinstance(holder, bytes), holder, holder, expires),  # text that is none
    )
    connection.commit()
    assert described(store.holder(NAME))
    taken = store.take(NAME, 1000)
    if taken is None:  # only where the row is one that this program could have written
        now = time.time()
        kept_token, kept = connection.execute("SELECT token, expires FROM prong_leases").fetchone()
        assert 0 <= int(kept_token) < 2**31 - 1
        assert now - 1 < float(kept) < now + liveness.LONGEST_LEASE + 1
        assert not gone(store.holder(NAME))
        return
    assert taken != token
    assert store.take(NAME, 1000) is None
    assert store.renew(NAME, taken, 1000)
    assert described(store.holder(NAME)) == described(identity())
    store.give_back(NAME, taken)
    assert store.take(NAME, 1000) == taken + 1


@pytest.mark.parametrize("holder", ["", "{", "[]", '{"prong.pid": "1"}', b"\xff", None])
def test_a_holder_that_cannot_be_read_keeps_the_lease_until_it_expires(
    table: tuple[TableLeases, sqlite3.Connection], holder: str | bytes | None
) -> None:
    store, connection = table
    for left, taken in ((900.0, None), (-1.0, 8)):
        row = (NAME, 7, holder, time.time() + left)
        connection.execute("INSERT OR REPLACE INTO prong_leases VALUES (?, ?, ?, ?)", row)
        connection.commit()
        assert described(store.holder(NAME)) == "an unknown process"
        assert store.take(NAME, 1000) == taken


def test_two_that_find_the_same_garbage_do_not_both_take_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'leases.db'}"
    first, second = TableLeases(uri), TableLeases(uri)
    assert first.take(NAME, 1000) == 1
    with closing(sqlite3.connect(tmp_path / "leases.db")) as connection:
        connection.execute("UPDATE prong_leases SET token = 'mine'")
        connection.commit()
    assert not first.renew(NAME, 1, 1000)  # who held it learns so
    found = [store.take(NAME, 1000) for store in (first, second)]
    assert found[0] is not None
    assert found[1] is None
    assert found[0] >= 2**29  # nobody's of before


def test_a_table_of_another_shape_is_a_message(layout: Layout) -> None:
    tracking.connect(layout)
    with closing(sqlite3.connect(layout.state / "mlflow.db")) as connection:
        connection.execute("CREATE TABLE prong_leases (other TEXT)")
    with pytest.raises(UserError, match="cannot be used"), leased(layout, NAME):
        pass


def test_a_lease_that_nobody_known_holds_is_waited_for_and_named(layout: Layout) -> None:
    tracking.connect(layout)
    with leased(layout, NAME):
        pass
    with closing(sqlite3.connect(layout.state / "mlflow.db")) as connection:
        row = (time.time() + 900, "not JSON [/]\x1b[2J")
        connection.execute("UPDATE prong_leases SET expires = ?, holder = ?", row)
        connection.commit()
    with (
        pytest.raises(Unavailable, match="an unknown process has been at work"),
        leased(layout, NAME, patience=0.05),
    ):
        pass


@settings(max_examples=600 // TIMES)
@given(
    texts | st.from_regex(r"[0-9]{1,40}", fullmatch=True),
    st.dictionaries(st.sampled_from(["prong.lasts", "prong.holder"]), holders),
    values,
    values,
)
def test_no_model_of_a_server_stops_the_next_one(
    name: str, tags: dict[str, Any], renewed: Any, date: Any
) -> None:
    model = RegisteredModel(server_leases._kind(NAME) + name, 0, renewed, name)
    model._tags = tags
    number = server_leases._generation(NAME, model)
    assert number is None or str(number) == name
    assert described(server_leases._holder(model))
    now = server_leases._seconds(date)
    expired = server_leases._has_expired(model, now)
    if not expired:
        assert liveness.DURATION.parse(tags["prong.lasts"]) is not None
        assert renewed / 1000 > now - liveness.LONGEST_LEASE - 2
    assert isinstance(gone(server_leases._holder(model)), bool)


def test_a_servers_lease_lasts_as_long_as_it_says() -> None:
    now = time.time()
    for ago, expired in ((0, False), (29, False), (32, True), (-90_000, True)):
        model = RegisteredModel(f"{server_leases._kind(NAME)}7", 0, int(1000 * (now - ago)))
        model._tags = {"prong.lasts": "30.0"}
        assert server_leases._has_expired(model, now) is expired
        assert server_leases._generation(NAME, model) == 7
    date = "Fri, 27 Nov 2026 10:00:00 GMT"
    assert server_leases._seconds(date) == 1795773600.0


@settings(max_examples=600 // TIMES)
@given(holders | identities)
def test_an_identity_is_read_whole_or_not_at_all(said: Any) -> None:
    holder = holder_of(said)
    assert isinstance(gone(said), bool)
    assert described(said).isprintable()
    tags = said if isinstance(said, dict) else {"prong.pid": said}
    assert isinstance(liveness.dead(tags), bool)
    if holder is None:
        assert not gone(said)
        assert described(said) == "an unknown process"


@pytest.mark.parametrize("beat", ["", "nan", "inf", "-1", "1e300", "soon", f"{2**62}"])
def test_a_heartbeat_that_cannot_be_keeps_no_run_alive(beat: str) -> None:
    elsewhere = {**identity(), "prong.kernel": "another-boot/pid:[1]", liveness.HEARTBEAT: beat}
    assert liveness.dead(elsewhere)
    assert liveness.dead({liveness.HEARTBEAT: beat})
    assert not liveness.dead({**elsewhere, liveness.HEARTBEAT: f"{time.time():.0f}"})

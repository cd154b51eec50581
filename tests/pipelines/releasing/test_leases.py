"""One transaction at a time: leases that expire, pass on, and fence off who slept."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_checkout import FinishedCheckout
from fork_server import until_stopped
from key_pairs import share_key
from postgres import Postgres
from registries import Registries, Registry
from test_crashes import whole_again

from pipelines.core import faults
from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.systems import mlflow as tracking
from pipelines.systems.liveness import identity
from pipelines.systems.mlflow import leases
from pipelines.systems.mlflow.leases import TableLeases, leased
from pipelines.systems.secrets import USER, secret

Make = Callable[..., FinishedCheckout]
NAME = "registry m"


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let who takes a lease from now on be a process of another machine."""
    other = {**identity(), "prong.kernel": "another/machine"}
    monkeypatch.setattr(leases, "identity", lambda: other)


def taking_turns(store: TableLeases) -> None:
    first = store.take(NAME, 1000)
    assert first == 1
    assert store.take(NAME, 1000) is None
    assert store.take("registry other", 1000) == 1
    assert store.renew(NAME, 1, -1)  # has run out by the database's clock
    assert store.take(NAME, 1000) == 2
    assert not store.renew(NAME, 1, 1000)
    store.give_back(NAME, 1)  # not the first one's any more
    assert store.take(NAME, 1000) is None
    assert store.renew(NAME, 2, 1000)
    store.give_back(NAME, 2)
    assert store.take(NAME, 1000) == 3
    assert json.loads(store.holder(NAME))["prong.pid"] == str(os.getpid())


def test_a_lease_is_held_by_one_and_passes_on_when_it_has_run_out(tmp_path: Path) -> None:
    taking_turns(TableLeases(f"sqlite:///{tmp_path / 'leases.db'}"))


@pytest.mark.slow
def test_postgresql_keeps_leases_as_well(postgres: Postgres) -> None:
    taking_turns(TableLeases(postgres.create("leases")))


def test_a_dead_holder_is_followed_at_once_and_one_of_another_machine_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TableLeases(f"sqlite:///{tmp_path / 'leases.db'}")
    dead = {**identity(), "prong.process_start": "1"}
    with monkeypatch.context() as patch:
        patch.setattr(leases, "identity", lambda: dead)
        assert store.take(NAME, 1000) == 1
    elsewhere(monkeypatch)
    assert store.take(NAME, 1000) == 2
    monkeypatch.undo()
    assert store.take(NAME, 1000) is None


def test_who_waits_too_long_is_told_who_holds_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.connect(layout)
    monkeypatch.setattr(leases, "PATIENCE", 0.2)
    with leased(layout, NAME):
        with leased(layout, NAME, patience=0) as second:
            assert second is None
        with (
            pytest.raises(Unavailable, match=rf"process {os.getpid()} on .* has been at work"),
            leased(layout, NAME, patience=0.1),
        ):
            pass
    with leased(layout, NAME, patience=0) as after:
        assert after is not None


def test_a_fault_point_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("promote.everything", "promote.intent:maybe"):
        monkeypatch.setenv(faults.SETTING, wrong)
        with pytest.raises(UserError, match=r"PRONG_FAULT.*promote\.intent"):
            faults.point("promote.intent")


ASLEEP = {
    "promote.intent": ("challenged", "B", "promote", {}, 2),
    "register.upload": ("one", "B", "register", {}, 1),
    "promote.tags": ("challenged", "B", "promote", {}, 2),
    "promote.previous": ("challenged", "B", "promote", {}, 2),
    "promote.history": ("challenged", "B", "promote", {}, 2),
    "register.version": ("one", "B", "register", {}, 1),
    "rollback.verified": ("two", "B", "rollback", {"to": "1"}, 1),
    "rollback.previous": ("two", "B", "rollback", {"to": "1"}, 1),
}
"""Point → situation, model, command, its options, the champion in the end."""


def sleep_and_wake(registries: Registries, point: str) -> None:
    """Put a holder to sleep until another has done its work, and wake it."""
    situation, model, command, options, champion = ASLEEP[point]
    registry = registries.at(situation)
    before = registry.look()
    asleep = registry.start(model, command, f"{point}:stop", lasts=2.0, **options)
    until_stopped(asleep)
    other = registry.call(model, command, **options)  # waits until the lease has run out
    assert other.code == 0 or "is champion already" in other.said, other.said
    between = registry.look()
    whole_again(between, before)
    assert between["aliases"]["champion"] == champion

    os.kill(asleep.pid, signal.SIGCONT)
    woken = asleep.wait()
    assert woken.code == 1
    assert "LeaseLost" in woken.said
    assert "taken over" in woken.said
    assert registry.look() == between


@pytest.mark.parametrize("point", list(ASLEEP)[:1])
def test_a_holder_that_slept_through_its_lease_changes_nothing(
    on_sqlite: Registries, point: str
) -> None:
    sleep_and_wake(on_sqlite, point)


@pytest.mark.slow
@pytest.mark.parametrize("point", list(ASLEEP)[1:])
def test_a_holder_that_slept_changes_nothing_at_any_point_on_sqlite(
    on_sqlite: Registries, point: str
) -> None:
    sleep_and_wake(on_sqlite, point)


@pytest.mark.slow
@pytest.mark.parametrize("point", ASLEEP)
def test_a_holder_that_slept_changes_nothing_at_any_point_on_postgresql(
    on_postgres: Registries, point: str
) -> None:
    sleep_and_wake(on_postgres, point)


def at_once(registry: Registry, models: list[str]) -> list[Any]:
    """Let all register and promote at once; return what each was told."""
    started = [registry.start(model, "release_model") for model in models]
    ended = [process.wait() for process in started]
    assert [one.code for one in ended] == [0] * len(models), ended
    return [one.said for one in ended]


def all_is_there(registry: Registry, models: list[str], said: list[Any]) -> None:
    seen = registry.look()
    whole_again(seen, {"entries": [], "complete": []})
    of = {model: {one["version"] for m, one in zip(models, said, strict=True) if m == model}
          for model in models}  # fmt: skip
    assert all(len(numbers) == 1 for numbers in of.values()), "equal bytes got two versions"
    distinct = len(set(models))
    assert seen["complete"] == list(range(1, distinct + 1))
    # Who was told so was promoted, once: nothing is lost or doubled, and the last one is champion.
    live = [entry["version"] for entry in seen["entries"]]
    assert live
    assert sorted(live) == sorted(one["version"] for one in said if one["promoted"])
    assert seen["aliases"]["champion"] == live[-1]
    assert [e["replaced"] for e in seen["entries"]] == [None, *live[:-1]]


def test_two_transactions_at_once(on_sqlite: Registries) -> None:
    registry = on_sqlite.at("empty")
    all_is_there(registry, ["A", "B"], at_once(registry, ["A", "B"]))


@pytest.fixture(scope="module")
def many(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, roots: dict[str, Path]
) -> dict[str, Path]:
    """Eight checkouts with eight models."""
    found = {}
    folder = tmp_path_factory.mktemp("many")
    for seed in range(8):
        layout = Layout(folder / f"m{seed}")
        layout.state.mkdir(parents=True)
        shutil.copytree(digits, layout.prepared)
        FinishedCheckout.make(layout, 1.0 + seed, seed)
        found[f"m{seed}"] = layout.root
        share_key(Layout(roots["A"]), layout)
    return found


@pytest.mark.slow
def test_four_transactions_at_once_on_sqlite(on_sqlite: Registries, many: dict[str, Path]) -> None:
    models = [*list(many)[:4], "m0"]  # and a fifth with the bytes of the first
    made = on_sqlite.at("empty")
    registry = Registry(made.env, {**made.roots, **many}, made.leaves)
    all_is_there(registry, models, at_once(registry, models))


@pytest.mark.slow
def test_eight_at_once_on_postgresql(on_postgres: Registries, many: dict[str, Path]) -> None:
    made = on_postgres.at("empty")
    registry = Registry(made.env, {**made.roots, **many}, made.leaves)
    all_is_there(registry, list(many), at_once(registry, list(many)))


@pytest.mark.slow
def test_first_starts_at_once_make_one_database(
    postgres: Postgres, roots: dict[str, Path], tmp_path: Path
) -> None:
    env = {
        "MLFLOW_TRACKING_URI": postgres.create("empty"),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": (tmp_path / "artifacts").as_uri(),
    }
    registry = Registry(env, roots, tmp_path / "output")
    all_is_there(registry, ["A", "B", "C"], at_once(registry, ["A", "B", "C"]))


@pytest.mark.slow
def test_a_server_knows_leases_and_intents_too(
    layout: Layout,
    roots: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from pipelines.cli.ui import pages

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # so none is started
    with pages(layout, mlflow_port=5700, prefect_port=4200) as (page, _):
        where = {
            "MLFLOW_TRACKING_URI": page.url,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": secret(layout, "mlflow"),
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": (layout.state / "artifacts").as_uri(),
        }
        registry = Registry(where, roots, tmp_path / "output")
        all_is_there(registry, ["A", "B"], at_once(registry, ["A", "B"]))
        registry.told("C", "register")
        before = registry.look()
        assert registry.call("C", "promote", "promote.champion").code == -signal.SIGKILL
        registry.told("C", "history")
        whole_again(registry.look(), before)
        assert registry.look()["aliases"]["champion"] == 3
        registry.told("C", "rollback")
        asleep = registry.start("C", "hold", lasts=2.0)
        until_stopped(asleep)
        registry.told("C", "promote", version=3, asked=True)
        between = registry.look()
        os.kill(asleep.pid, signal.SIGCONT)
        woken = asleep.wait()
        assert woken.code == 1
        assert "LeaseLost" in woken.said
        assert registry.look() == between

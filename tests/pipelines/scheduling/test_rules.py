"""What a run does in view of the others: one worker per time, the newest of a backlog."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.errors import Failed, Unavailable, UserError
from pipelines.scheduling import rules
from pipelines.scheduling.rules import ATTEMPTS, Due

START = datetime(2030, 1, 1, tzinfo=UTC)
NOW = START + timedelta(minutes=30)
PHASES = st.sampled_from(["waiting", "running", "done", "skipped"])


@st.composite
def fleets(draw: st.DrawFn) -> list[Due]:
    """Draw runs of one deployment, several for one time among them, some of the future."""
    count = draw(st.integers(1, 12))
    return [
        Due(f"run-{n:02}", START + timedelta(minutes=draw(st.integers(0, 40))), draw(PHASES))
        for n in range(count)
    ]


@given(fleets())
def test_of_a_backlog_exactly_the_newest_works_whoever_asks(fleet: list[Due]) -> None:
    waiting = [run for run in fleet if run.phase == "waiting" and run.scheduled <= NOW]
    others = [run for run in fleet if run not in waiting and run.phase == "skipped"]
    found = {run.run_id: rules.turn_of(run, [*waiting, *others], NOW) for run in waiting}
    working = [run for run in waiting if not found[run.run_id].skip]
    assert working == ([max(waiting, key=lambda run: run.rank)] if waiting else [])
    for run in working:
        rest = {other.run_id for other in waiting} - {run.run_id}
        assert set(found[run.run_id].overtaken) == rest


@given(fleets(), PHASES)
def test_a_time_is_worked_once(fleet: list[Due], phase: rules.Phase) -> None:
    me = Due("me", START + timedelta(minutes=10), "running")
    twin = Due("twin", me.scheduled, phase)
    found = rules.turn_of(me, [*fleet, twin], NOW)
    if phase in ("running", "done"):
        assert found.skip
        assert found.overtaken == ()
    assert me.run_id not in found.overtaken


@given(fleets())
def test_runs_of_the_future_are_left_alone(fleet: list[Due]) -> None:
    me = Due("me", START, "running")
    late = [run for run in fleet if run.scheduled > NOW]
    assert rules.turn_of(me, late, NOW) == rules.Turn("", ())


@given(fleets(), st.lists(st.integers(1, 5), min_size=12, max_size=12))
def test_only_the_newest_dead_run_is_begun_again_and_not_for_ever(
    fleet: list[Due], begun: list[int]
) -> None:
    half = len(fleet) // 2
    dead, alive = list(zip(fleet[:half], begun, strict=False)), fleet[half:]
    found = rules.to_begin_again(dead, alive)
    if found is None:
        return
    (run, count), *_ = [item for item in dead if item[0].run_id == found]
    assert run.rank == max(other.rank for other, _ in dead)
    assert count < ATTEMPTS
    assert all(other.phase == "skipped" for other in alive if other.rank > run.rank)


def test_a_killed_run_with_nothing_after_it_is_begun_again() -> None:
    run = Due("a", START, "running")
    after = Due("b", START + timedelta(minutes=1), "waiting")
    assert rules.to_begin_again([(run, 1)], []) == "a"
    assert rules.to_begin_again([(run, ATTEMPTS)], []) is None
    assert rules.to_begin_again([(run, 1)], [after]) is None


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (Unavailable("MLflow does not answer"), True),
        (UserError("train.lr = -1"), False),
        (Failed("stage train failed"), False),
        (ValueError("x"), False),
        (OSError(28, "no space left"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_only_what_an_outside_system_did_is_tried_again(error: BaseException, passes: bool) -> None:
    assert rules.can_pass(error) is passes


@given(st.integers(0, 20), st.floats(0.01, 3600))
def test_pauses_double_up_to_a_bound(retries: int, first: float) -> None:
    found = list(rules.pauses(retries, first))
    assert len(found) == retries
    assert all(0 < pause <= 600 for pause in found)
    assert all(b == min(2 * a, 600) for a, b in itertools.pairwise(found) if a < 600)

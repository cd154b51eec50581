"""Every layer has its turn once in a period, and in the first one more often."""

from __future__ import annotations

import pytest

from prong.refresh.schedule import Schedule

CASES = [
    (period, units, spread, early)
    for period in (1, 2, 3, 7, 10, 11, 20, 21, 40, 50, 100)
    for units in (1, 2, 3, 5, 13)
    for spread in (False, True)
    for early in (False, True)
]


def early_of(schedule):
    """10, 20, 40 … below T, one after the other."""
    found, step = [], 10
    while schedule.early and step < schedule.period:
        found.append(step)
        step *= 2
    return found


def listed(schedule, unit, last):
    """The steps up to `last` at which a unit is reparametrised, written down as the text says."""
    period = schedule.period
    turn = period
    if schedule.spread:
        turn = period * (unit + 1) // schedule.units
    found = {step for step in range(1, last + 1) if step % period == turn % period}
    if early_of(schedule):
        # The turns of the first period give way to its early steps.
        found = {step for step in found if step >= period} | set(early_of(schedule))
    return sorted(found)


@pytest.mark.parametrize("period", sorted({case[0] for case in CASES}))
def test_due_and_remaining_agree_with_a_list(period):
    for _, units, spread, early in (case for case in CASES if case[0] == period):
        schedule = Schedule(period, units, spread, early)
        last = 4 * period + 25
        for unit in range(units):
            wanted = listed(schedule, unit, last + 2 * period)
            due = [step for step in range(last + 1) if schedule.due(unit, step)]
            assert due == [step for step in wanted if step <= last], (schedule, unit)
            for steps in range(last):
                coming = next(step for step in wanted if step > steps)
                assert schedule.remaining(unit, steps) == coming - steps, (schedule, unit, steps)


@pytest.mark.parametrize("period", sorted({case[0] for case in CASES}))
def test_every_unit_has_one_turn_in_each_period_after_the_first(period):
    for _, units, spread, early in (case for case in CASES if case[0] == period):
        schedule = Schedule(period, units, spread, early)
        for unit in range(units):
            for first in (period, 2 * period, 3 * period):
                turns = [
                    step
                    for step in range(first + 1, first + period + 1)
                    if schedule.due(unit, step)
                ]
                assert len(turns) == 1, (schedule, unit)
        # Without turns all have the same one, with them the last unit's is the period's end.
        assert schedule.due(units - 1, 2 * period)
        together = {unit for unit in range(units) if schedule.due(unit, 2 * period)}
        assert spread or together == set(range(units))


def test_turns_lie_as_far_apart_as_they_can():
    schedule = Schedule(12, 4, True, False)
    assert [[s for s in range(25) if schedule.due(u, s)] for u in range(4)] == [
        [3, 15], [6, 18], [9, 21], [12, 24]
    ]  # fmt: skip


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("units", [1, 3, 13])
def test_early_steps_double_and_are_those_of_all_units(units, spread):
    for period in range(1, 400):
        schedule = Schedule(period, units, spread, True)
        assert list(schedule.early_steps) == early_of(schedule), period
    schedule = Schedule(100, units, spread, True)
    assert schedule.early_steps == (10, 20, 40, 80)
    for step in range(1, 100):
        due = [schedule.due(unit, step) for unit in range(units)]
        assert all(due) if step in schedule.early_steps else not any(due), step
    assert Schedule(100, units, spread, False).early_steps == ()


def test_nothing_is_due_before_the_first_step():
    for case in CASES:
        schedule = Schedule(*case)
        assert not any(schedule.due(unit, 0) for unit in range(schedule.units))

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.learning_rate import Waterfall


def test_the_rate_rises_linearly_and_stays() -> None:
    schedule = Waterfall(lr=1.0, warmup=4, patience=2, drop=0.1, steps=1000, cooldown=0)
    assert [schedule.rate(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_the_rate_falls_after_as_many_failures_as_patience_has() -> None:
    schedule = Waterfall(lr=1.0, warmup=0, patience=2, drop=0.1, steps=1000, cooldown=0)
    rates = []
    for error in (0.5, 0.4, 0.4, 0.4, 0.3, 0.5, 0.5, 0.5, 0.5):
        schedule.evaluated(error, 1.0)
        rates.append(schedule.rate(100))
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_a_smaller_loss_at_the_same_error_is_an_improvement() -> None:
    schedule = Waterfall(lr=1.0, warmup=0, patience=1, drop=0.5, steps=1000, cooldown=0)
    assert schedule.evaluated(0.1, 1.0)
    assert schedule.evaluated(0.1, 0.9)
    assert not schedule.evaluated(0.1, 0.9)
    assert schedule.rate(0) == 0.5


def test_the_cool_down_ends_at_almost_nothing() -> None:
    schedule = Waterfall(lr=1.0, warmup=0, patience=1, drop=0.1, steps=10, cooldown=0.5)
    rates = [schedule.rate(step) for step in range(10)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


@given(st.lists(st.floats(0, 1), max_size=30), st.integers(1, 4))
def test_the_rate_never_rises_after_the_warm_up(errors: list[float], patience: int) -> None:
    schedule = Waterfall(lr=1.0, warmup=3, patience=patience, drop=0.1, steps=1000, cooldown=0)
    rates = [schedule.rate(10)]
    for error in errors:
        schedule.evaluated(error, error)
        rates.append(schedule.rate(10))
    assert rates == sorted(rates, reverse=True)
    assert schedule.falls <= len(errors) // patience

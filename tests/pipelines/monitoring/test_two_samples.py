"""The comparison: no more false alarms than asked for, and alarms where something has changed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipelines.monitoring.comparison import Examples, Kind, alarms, compare
from pipelines.monitoring.power import power_curve

RATE = 0.01


def drawn(seed: int, count: int, *, shift: float = 0.0, classes: int = 10) -> Examples:
    """Return what a classifier may answer; a shift makes it less sure and moves the scores."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(classes, size=count)
    logits = draw.normal(0, 1, (count, classes))
    logits[np.arange(count), truth] += 6 - 3 * shift
    powers = np.exp(logits - logits.max(1, keepdims=True))
    answers = powers / powers.sum(1, keepdims=True)
    scores = draw.chisquare(30, count) * (1 + 0.3 * shift)
    return Examples(scores, answers, answers.argmax(1))


def share_of_alarms(looks: int, count: int, shift: float, rate: float = RATE) -> float:
    found = 0
    for seed in range(looks):
        reference = drawn(2 * seed, 500)
        seen = drawn(2 * seed + 1, count, shift=shift)
        found += bool(alarms(compare(reference, seen, rate, 100)))
    return found / looks


@pytest.mark.parametrize(
    ("count", "looks", "rate"),
    [
        (100, 40, 0.05),
        (1500, 20, 0.05),
        pytest.param(100, 1500, RATE, marks=pytest.mark.slow),
        pytest.param(1500, 1500, RATE, marks=pytest.mark.slow),
    ],
)
def test_unchanged_inputs_alarm_no_more_often_than_asked_for(
    count: int, looks: int, rate: float
) -> None:
    # Alarms are binomial: so many at the stated rate with probability one in a thousand.
    most = stats.binom.isf(1e-3, looks, rate)
    assert share_of_alarms(looks, count, 0.0, rate) * looks <= most


@pytest.mark.parametrize(("count", "shift", "least"), [(100, 1.0, 0.95), (400, 0.5, 0.95)])
def test_shifted_inputs_alarm_with_the_stated_power(count: int, shift: float, least: float) -> None:
    assert share_of_alarms(20, count, shift) >= least


@pytest.mark.parametrize(
    ("kind", "change"),
    [("score", "scores"), ("answers", "answers"), ("labels", "labels")],
)
def test_each_kind_of_test_alarms_on_its_own(kind: Kind, change: str) -> None:
    reference, seen = drawn(1, 1000), drawn(2, 500)
    other = {
        "scores": seen.scores * 1.5,
        "answers": np.sqrt(seen.answers),
        "labels": np.where(seen.labels == 3, 8, seen.labels),
    }[change]
    changed = Examples(**{**vars(seen), change: other})
    assert not alarms(compare(reference, seen, RATE, 100))
    assert {one.kind for one in alarms(compare(reference, changed, RATE, 100))} == {kind}


def test_the_levels_of_all_tests_add_up_to_the_rate() -> None:
    tests = compare(drawn(1, 500), drawn(2, 500), RATE, 100)
    assert len(tests) == 12
    assert sum(one.level for one in tests) == pytest.approx(RATE)
    levels = {kind: sum(one.level for one in tests if one.kind == kind) for kind in
              ("score", "answers", "labels")}  # fmt: skip
    assert list(levels.values()) == pytest.approx([RATE / 3] * 3)
    only = compare(Examples(answers=drawn(1, 500).answers), drawn(2, 500), RATE, 100)
    assert {one.kind for one in only} == {"answers"}
    assert sum(one.level for one in only) == pytest.approx(RATE)


def test_too_few_examples_decide_nothing() -> None:
    assert compare(drawn(1, 500), drawn(2, 99), RATE, 100) == ()
    assert compare(drawn(1, 99), drawn(2, 500), RATE, 100) == ()
    assert compare(Examples(), drawn(2, 500), RATE, 100) == ()


def test_answers_of_another_length_are_not_compared() -> None:
    tests = compare(drawn(1, 500), drawn(2, 500, classes=9), RATE, 100)
    assert "answers" not in {one.kind for one in tests}


def test_rounding_noise_on_a_constant_answer_is_no_drift() -> None:
    noise = np.random.default_rng(0).normal(0, 1e-7, (2, 1000))
    reference = Examples(answers=(0.73 + noise[0])[:, None])
    seen = Examples(answers=(0.73 + 2e-7 + noise[1])[:, None])
    assert not alarms(compare(reference, seen, RATE, 100))
    sure = Examples(answers=np.where(noise[0] > 0, 1.0, 1 - 2e-7)[:, None])
    assert not alarms(compare(sure, Examples(answers=np.ones((1000, 1))), RATE, 100))
    zero = Examples(answers=np.zeros((1000, 1)))
    assert not alarms(compare(zero, zero, RATE, 100))


def test_scores_that_are_not_finite_count_as_the_furthest() -> None:
    reference, seen = drawn(1, 1000), drawn(2, 500)
    lost = seen.scores.copy()
    lost[:100] = np.inf
    found = alarms(compare(reference, Examples(scores=lost), RATE, 100))
    assert [one.kind for one in found] == ["score"]
    assert np.isfinite(found[0].statistic)


def test_a_class_never_seen_before_is_compared_and_one_class_is_no_test() -> None:
    reference = Examples(labels=np.zeros(300, np.int64))
    new = Examples(labels=np.repeat([0, 7], [250, 50]))
    assert alarms(compare(reference, new, RATE, 100))
    assert compare(reference, reference, RATE, 100)[0].p == 1.0


def test_power_rises_with_the_examples_and_is_the_rate_where_nothing_changed() -> None:
    reference = drawn(1, 1000)
    shifted = power_curve(reference, drawn(2, 4000, shift=0.25), (50, 200, 800), looks=10)
    assert [one.examples for one in shifted] == [50, 200, 800]
    assert shifted[0].share < shifted[2].share
    assert shifted[2].share >= 0.9
    assert set(shifted[0].by_kind) == {"score", "answers", "labels"}
    same = power_curve(reference, drawn(3, 4000), (50, 200, 9000), looks=10)
    assert [one.examples for one in same] == [50, 200]
    assert max(one.share for one in same) <= 0.2

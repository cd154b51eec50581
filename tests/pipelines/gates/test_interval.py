from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tasks.interval import LEVEL, images_needed, upper_bound


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[int, int, int]:
    images = draw(st.integers(1, 2000))
    lost = draw(st.integers(0, images))
    return lost, draw(st.integers(0, images - lost)), images


@given(outcomes())
def test_the_bound_lies_above_what_was_seen_and_below_one(outcome: tuple[int, int, int]) -> None:
    lost, won, images = outcome
    bound = upper_bound(lost, won, images)
    assert (lost - won) / images <= bound <= 1


@given(outcomes())
def test_one_more_loss_raises_it_and_one_more_win_lowers_it(outcome: tuple[int, int, int]) -> None:
    lost, won, images = outcome
    bound = upper_bound(lost, won, images)
    if lost + won < images:
        assert upper_bound(lost + 1, won, images) >= bound - 1e-8
        assert upper_bound(lost, won + 1, images) <= bound + 1e-8
    if lost and won:  # one discordant pair less, the same difference
        assert upper_bound(lost - 1, won - 1, images) <= bound + 1e-8


@given(outcomes(), st.integers(2, 5))
def test_more_of_the_same_images_narrow_it(outcome: tuple[int, int, int], times: int) -> None:
    lost, won, images = outcome
    many = upper_bound(times * lost, times * won, times * images)
    assert many <= upper_bound(lost, won, images) + 1e-8


@given(outcomes())
def test_a_higher_level_asks_for_more(outcome: tuple[int, int, int]) -> None:
    assert upper_bound(*outcome, level=0.99) >= upper_bound(*outcome, level=0.9) - 1e-8


@pytest.mark.parametrize("images", [20, 64, 200])
@pytest.mark.parametrize("difference", [0.0, 0.005, 0.02, 0.05, 0.1])
def test_it_misses_the_truth_no_more_often_than_it_says(images: int, difference: float) -> None:
    # Exactly: every outcome of both kinds of discordant pair, weighed by its probability. Beyond
    # `most` of a kind lies next to nothing, counted as missed.
    most = min(images, 60)
    bounds = np.full((most + 1, most + 1), -1.0)
    for lost in range(most + 1):
        for won in range(min(most, images - lost) + 1):
            bounds[lost, won] = upper_bound(lost, won, images)
    for won_share in (0.0, 0.001, 0.003, 0.01, 0.03, 0.06):
        seen = covered = 0.0
        for lost in range(most + 1):
            for won in range(min(most, images - lost) + 1):
                chance = _chance(lost, won, images, won_share + difference, won_share)
                seen += chance
                covered += chance * bool(bounds[lost, won] >= difference - 1e-9)
        assert seen == pytest.approx(1, abs=1e-6)
        assert covered >= LEVEL, (images, difference, won_share)


def _chance(lost: int, won: int, images: int, lost_share: float, won_share: float) -> float:
    rest = images - lost - won
    counts = ((lost, lost_share), (won, won_share), (rest, 1 - lost_share - won_share))
    if any(count and share <= 0 for count, share in counts):
        return 0.0
    log = math.lgamma(images + 1)
    for count, share in counts:
        log += count * math.log(share) - math.lgamma(count + 1) if count else 0.0
    return math.exp(log)


def test_identical_answers_of_the_digits_gate_split_stay_within_the_margin() -> None:
    assert upper_bound(0, 0, 375) == pytest.approx(0.0096, abs=5e-5)
    assert upper_bound(0, 0, 519) == pytest.approx(0.0070, abs=5e-5)
    # The points of the table in docs/gates.md.
    assert [round(100 * upper_bound(*o), 2) for o in ((4, 4, 519), (6, 3, 519), (5, 0, 519))] == [
        1.15, 1.83, 2.09,
    ]  # fmt: skip


@given(st.floats(0.001, 0.5))
def test_as_many_images_as_needed_and_no_more(margin: float) -> None:
    needed = images_needed(margin)
    assert upper_bound(0, 0, needed) <= margin
    assert needed == 1 or upper_bound(0, 0, needed - 1) > margin


@pytest.mark.parametrize("outcome", [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
def test_an_impossible_outcome_is_refused(outcome: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no such outcome"):
        upper_bound(*outcome)

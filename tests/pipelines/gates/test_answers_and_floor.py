from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from classifiers import classifier_form

from pipelines.gates import agreement, quality
from pipelines.gates.finding import Finding
from pipelines.gates.measuring import Answers, Asked, answer_differences, batch_differences
from pipelines.tasks.classification import Classification


def test_probabilities_and_labels_follow_from_the_logits() -> None:
    assert agreement.answers(1e-6, 0, 0, 500, 1e-4).passed
    assert not agreement.answers(1.1e-4, 0, 0, 500, 1e-4).passed
    assert not agreement.answers(float("nan"), 0, 0, 500, 1e-4).passed
    assert not agreement.answers(0.0, 0, 1, 500, 1e-4).passed
    assert agreement.answers(0.0, 5, 0, 500, 1e-4).passed  # equal but for rounding
    assert not agreement.answers(0.0, 6, 0, 500, 1e-4).passed


TASK = Classification(classifier_form("ab", 4, 1, (0.5,), (0.1,)))


def floor(wrong: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Finding:
    task = Classification(classifier_form(names, 4, 1, (0.5,), (0.1,)))
    nothing = np.zeros((len(labels), 0))
    trivial, told = task.trivial(labels, nothing), task.trivial_told(labels)
    return quality.floor(task, wrong.astype(np.float64), trivial, told)


def answered(logits: list[list[float]], shares: list[list[float]] | None = None) -> Answers:
    given = np.array(logits, np.float32)
    if shares is not None:
        return Answers(given, np.array(shares, np.float32))
    powers = np.exp(given - given.max(axis=1, keepdims=True))
    return Answers(given, powers / powers.sum(axis=1, keepdims=True))


def test_differences_are_found_in_either_output_and_at_any_batch() -> None:
    alone = answered([[3.0, 1.0], [0.0, 4.0]])
    asked = {1: (alone, alone), 3: (alone, alone)}
    assert answer_differences(Asked(alone, asked), TASK) == (pytest.approx(0, abs=1e-6), 0, 0, 6)
    assert batch_differences(Asked(alone, asked)) == {1: 0.0, 3: 0.0}
    turned = answered([[-3.0, -1.0], [0.0, -4.0]])
    found = Asked(alone, {**asked, 3: (turned, alone)})
    assert batch_differences(found) == {1: 0.0, 3: 2.0}
    assert answer_differences(found, TASK)[2] == 0  # turned as a whole: of one mind
    other = answered([[3.0, 1.0], [0.0, 4.0]], [[0.1, 0.9], [0.9, 0.1]])
    found = Asked(alone, {**asked, 3: (other, alone)})
    assert batch_differences(found)[3] == pytest.approx(0.88, abs=0.01)
    assert answer_differences(found, TASK)[2] == 2
    # So close that the outputs round apart, and just not so close.
    near = answered([[1.0, 1.0]], [[0.5, np.nextafter(np.float32(0.5), np.float32(1))]])
    assert answer_differences(Asked(near, {}), TASK)[1:] == (1, 0, 1)
    apart = answered([[1.0, 1.0]], [[0.49999, 0.50001]])
    assert answer_differences(Asked(apart, {}), TASK)[1:] == (0, 1, 1)
    for value in (np.nan, np.inf):
        broken = answered([[value, 1.0]], [[0.5, 0.5]])
        assert np.isnan(answer_differences(Asked(broken, {}), TASK)[0])
        assert not batch_differences(Asked(broken, {2: (broken, broken)}))[2] <= 1e-4


def test_no_version_passes_that_answers_like_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    names = ["a", "b", "c"]
    always = labels != 0
    same = floor(always, labels, names)
    assert (same.verdict, same.limit) == ("fail", 0.0)
    assert "40 of 100 wrong, always 'a' 40" in same.reason
    # One image better is chance, twelve are not.
    for better, passes in ((1, False), (12, True)):
        wrong_now = always.copy()
        wrong_now[60 : 60 + better] = False
        assert floor(wrong_now, labels, names).passed == passes
    # Of as many errors, but on other images.
    assert not floor(np.arange(100) < 40, labels, names).passed
    assert floor(np.zeros(100, np.bool_), labels, names).passed


def test_too_few_gate_images_for_a_floor_are_said_to_be_too_few() -> None:
    labels = np.array([0] * 38 + [1] * 2)
    found = floor(np.zeros(40, np.bool_), labels, ["a", "b"])
    assert found.verdict == "fail"
    assert "raise data.gate" in found.reason


@pytest.mark.parametrize("images", [20, 64, 200])
def test_chance_passes_the_floor_at_most_once_in_twenty(images: int) -> None:
    """A version that is right on each image with the probability that always the same has."""
    draw = np.random.default_rng(images)
    passed, tries = 0, 2000
    for _ in range(tries):
        labels = (draw.random(images) < 0.5).astype(np.int64)
        passed += floor(draw.random(images) < 0.5, labels, ["a", "b"]).passed
    assert passed / tries <= 0.05

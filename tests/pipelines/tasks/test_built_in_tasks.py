"""The tasks that are built in, held to what numpy, scipy and scikit-learn compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifiers import classifier_form
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import log_loss, mean_absolute_error, r2_score, zero_one_loss

from pipelines.core.errors import UserError
from pipelines.tasks.columns import Column
from pipelines.tasks.form import Form, Value
from pipelines.tasks.named import task_of
from pipelines.tasks.task import Task, quarters

ROOT = Path(__file__).parents[3]
COLUMNS = (Column("x", "number", 1.0, 2.0, True), Column("c", "category", categories=("a", "b")))
FINITE = st.floats(-50, 50, allow_nan=False, width=32)


def regression(*values: Value) -> Task:
    return task_of(Form("regression", values=values, columns=COLUMNS), ROOT)


def reconstruction(bits: int = 8) -> Task:
    return task_of(
        Form(
            "reconstruction", size=3, channels=2, mean=(0.4, 0.6), deviation=(0.2, 0.3), bits=bits
        ),
        ROOT,
    )


def classification(classes: str = "abc") -> Task:
    return task_of(classifier_form(classes, 2, 1, (0.5,), (0.25,)), ROOT)


def rows(n: int) -> np.ndarray:
    return np.stack([np.linspace(-3, 3, n), np.arange(n) % 4.0], axis=1)


def both(task: Task, raw: np.ndarray, targets: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Return the errors, after tensors and arrays were seen to give the same."""
    errors = np.asarray(task.score(raw, targets, inputs), dtype=np.float64)
    tensors = [torch.from_numpy(each) for each in (raw, targets, inputs)]
    again = task.score(*tensors)
    np.testing.assert_allclose(again.double().numpy(), errors, rtol=1e-4, atol=1e-5)
    assert errors.shape == (len(raw),)
    assert (errors >= 0).all()
    answers = task.answer(tensors[0]).double().numpy()
    np.testing.assert_allclose(answers, task.answer(raw), rtol=1e-4, atol=1e-4)
    return errors


@given(arrays.arrays(np.float32, (7, 3), elements=st.floats(-12, 12, width=32)))
def test_a_classifications_errors_and_loss(raw: np.ndarray) -> None:
    task, labels = classification(), np.arange(7) % 3
    nothing = np.zeros((7, 0))
    errors = both(task, raw, labels, nothing)
    assert errors.mean() == pytest.approx(zero_one_loss(labels, raw.argmax(1)))
    shares = task.answer(raw)
    assert task.sound(shares)
    assert not task.sound(shares * 1.1)
    loss = task.loss(torch.from_numpy(raw), torch.from_numpy(labels), torch.from_numpy(nothing))
    expected = log_loss(labels, np.clip(shares, 1e-300, 1), labels=[0, 1, 2])
    assert loss.mean().item() == pytest.approx(expected, abs=1e-3)


VALUES = (Value("up", 10.0, 4.0), Value("down", -3.0, 0.5))


@given(
    arrays.arrays(np.float32, (9, 2), elements=FINITE),
    arrays.arrays(np.float64, (9, 2), elements=st.floats(-100, 100)),
)
def test_a_regressions_errors_are_shares_of_the_variance(
    raw: np.ndarray, targets: np.ndarray
) -> None:
    task = regression(*VALUES)
    errors = both(task, raw, targets, rows(9))
    answers = raw.astype(np.float64) * [4.0, 0.5] + [10.0, -3.0]
    expected = (((answers - targets) / [4.0, 0.5]) ** 2).mean(axis=1)
    np.testing.assert_allclose(errors, expected, rtol=1e-4, atol=1e-6)
    loss = task.loss(*(torch.from_numpy(each) for each in (raw, targets, rows(9))))
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-3, atol=1e-3)  # two values, halved


def test_a_regressions_metrics_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    targets = draw.normal(10, 4, (200, 1))
    raw = ((targets - 10) / 4 + draw.normal(0, 0.5, (200, 1))).astype(np.float32)
    task = regression(Value("up", 10.0, 4.0))
    found = {one.name: one for one in task.metrics(raw, targets, rows(200))}
    answers = task.answer(raw)
    assert found["R²"].value == pytest.approx(r2_score(targets, answers))
    assert found["mean absolute error"].value == pytest.approx(
        mean_absolute_error(targets, answers)
    )
    assert found["RMSE"].value == pytest.approx(np.sqrt(((answers - targets) ** 2).mean()))
    assert found["error"].value == pytest.approx(100 * ((answers - targets) ** 2).mean() / 16)
    for one in found.values():
        assert one.low < one.value < one.high
    # About 19 of 20 intervals hold the truth, here 1 − 0.5² of the noise.
    assert found["R²"].low < 0.75 < found["R²"].high


@pytest.mark.parametrize("bits", [8, 16])
@settings(max_examples=25)
@given(data=st.data())
def test_a_reconstructions_errors_are_shares_of_the_pixels_variance(
    bits: int, data: st.DataObject
) -> None:
    task = reconstruction(bits)
    most, dtype = 2**bits - 1, np.uint8 if bits == 8 else np.uint16
    inputs = data.draw(arrays.arrays(dtype, (4, 2, 3, 3), elements=st.integers(0, most)))
    raw = data.draw(arrays.arrays(np.float32, (4, 2, 3, 3), elements=FINITE))
    nothing = np.zeros((4, 0))
    given_ = torch.from_numpy(inputs.astype(np.int64)) if bits == 16 else torch.from_numpy(inputs)
    errors = np.asarray(task.score(raw, nothing, inputs))
    again = task.score(torch.from_numpy(raw), torch.from_numpy(nothing), given_)
    np.testing.assert_allclose(again.double().numpy(), errors, rtol=1e-3, atol=1e-4)
    deviation = np.array([0.2, 0.3]).reshape(-1, 1, 1)
    off = (task.answer(raw) - inputs) / most / deviation
    np.testing.assert_allclose(errors, (off**2).mean(axis=(1, 2, 3)), rtol=1e-5, atol=1e-7)
    perfect = (inputs / most - np.array([0.4, 0.6]).reshape(-1, 1, 1)) / deviation
    assert task.score(perfect.astype(np.float32), nothing, inputs).max() < 1e-8
    loss = task.loss(torch.from_numpy(perfect.astype(np.float32)), torch.zeros(4, 0), given_)
    assert float(loss.max()) < 1e-6


@pytest.mark.parametrize(
    ("task", "targets", "inputs", "error"),
    [
        (classification(), np.array([0, 0, 1, 2]), np.zeros((4, 0)), 0.5),
        (regression(Value("up", 0.0, 2.0)), np.array([[1.0], [3.0]]), rows(2), 0.25),
        (reconstruction(), np.zeros((3, 0)), np.full((3, 2, 3, 3), 7, np.uint8), 0.0),
    ],
)
def test_the_answer_that_does_not_look(
    task: Task, targets: np.ndarray, inputs: np.ndarray, error: float
) -> None:
    assert task.trivial(targets, inputs).mean() == pytest.approx(error)
    assert task.trivial_told(targets).startswith("always ")


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_the_bound_of_a_rise_holds_in_nineteen_of_twenty(spread: float) -> None:
    task, draw, held = regression(*VALUES), np.random.default_rng(1), 0
    for _ in range(1000):
        old = draw.exponential(1.0, 60)
        held += task.rise(old + draw.normal(0.05, spread, 60), old) >= 0.05
    assert 0.93 <= held / 1000 <= 0.97
    assert task.rise(np.ones(1), np.zeros(1)) == np.inf  # one example shows nothing


def test_the_parts_are_classes_categories_and_quarters() -> None:
    task = regression(*VALUES)
    inputs = np.array([[0.0, 2], [1, 3], [2, 0], [3, 1], [np.nan, 2]])
    found = {part.name: part.members.tolist() for part in task.parts(np.zeros((5, 2)), inputs)}
    assert found["c = a"] == [True, False, False, False, True]
    assert found["c = b"] == [False, True, False, False, False]
    assert found["x missing"] == [False] * 4 + [True]
    assert found["x 0 to 0.75"] == [True] + [False] * 4
    assert found["x 2.25 to 3"] == [False, False, False, True, False]
    digits = classification().parts(np.array([2, 0]), np.zeros((2, 1, 2, 2)))
    assert [part.members.tolist() for part in digits] == [[False, True], [False] * 2, [True, False]]


@given(arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)))
def test_every_number_is_in_exactly_one_quarter(values: np.ndarray) -> None:
    parts = quarters("x", values)
    counts = sum(part.members.astype(int) for part in parts)
    constant = len(np.unique(values)) == 1 and not parts
    assert constant or (np.asarray(counts) == 1).all()


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (Form("classification", values=VALUES, columns=COLUMNS), "the data have no classes"),
        (classifier_form("ab", 2, 1, (0.5,), (0.1,)), ""),
        (Form("regression", classes=("a", "b"), columns=COLUMNS), "no values to predict"),
        (Form("reconstruction", values=VALUES, columns=COLUMNS), "must be images, not a table"),
        (Form("guessing", values=VALUES, columns=COLUMNS), "'guessing': no such task; allowed"),
    ],
)
def test_data_that_do_not_suit_the_task_are_refused(form: Form, said: str) -> None:
    if not said:
        task_of(form, ROOT)
        return
    with pytest.raises(UserError, match=said):
        task_of(form, ROOT)


def test_what_is_told_of_an_answer() -> None:
    told: Any = classification().told(np.array([0.2, 0.5, 0.3]), 2)
    assert list(told.items()) == [("b", 0.5), ("c", 0.3)]
    assert regression(*VALUES).told(np.array([1.5, -2.0])) == {"up": 1.5, "down": -2.0}

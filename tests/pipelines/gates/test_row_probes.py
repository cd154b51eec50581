from __future__ import annotations

import numpy as np

from pipelines.data.prepared import Split, check_split
from pipelines.gates.row_probes import extreme_rows, incomplete, noisy
from pipelines.tasks.columns import Column
from pipelines.tasks.form import Form

COLUMNS = (
    Column("age", "number", 40.0, 20.0),
    Column("town", "category", gaps=True, categories=("a", "b")),
    Column("height", "number", 170.0, 10.0, gaps=True),
)
FORM = Form("classification", classes=("no", "yes"), columns=COLUMNS)


def split(n: int = 4000) -> Split:
    rng = np.random.default_rng(1)
    rows = np.stack([rng.normal(40, 20, n), rng.integers(0, 4, n), rng.normal(170, 10, n)], axis=1)
    rows[:5, 2] = np.nan
    return Split(rows, rng.integers(0, 2, n), tuple(sorted(f"{at:064x}" for at in range(n))))


def test_noise_is_a_share_of_each_deviation_and_the_same_every_time() -> None:
    given = split()
    before = given.inputs.copy()
    ((name, found),) = noisy(given, FORM, 8.0).items()
    assert name == "under noise of 0.1 deviations"
    np.testing.assert_array_equal(given.inputs, before)
    np.testing.assert_array_equal(found.inputs, noisy(given, FORM, 8.0)[name].inputs)
    moved = found.inputs - before
    np.testing.assert_allclose(np.nanstd(moved[:, [0, 2]], axis=0), [2.0, 1.0], rtol=0.05)
    assert (moved[:, 1] == 0).all()
    assert np.isnan(found.inputs[:5, 2]).all()
    check_split("noise", found, FORM)
    (still,) = noisy(given, FORM, 0.0).values()
    np.testing.assert_array_equal(still.inputs, before)


def test_each_column_is_missing_in_turn() -> None:
    given = split(10)
    found = incomplete(given, FORM)
    assert list(found) == ["without age", "without town", "without height"]
    for at, name in enumerate(found):
        rows = found[name].inputs
        assert (rows[:, 1] == 0).all() if at == 1 else np.isnan(rows[:, at]).all()
        others = [other for other in range(3) if other != at]
        np.testing.assert_array_equal(rows[:, others], given.inputs[:, others])
        np.testing.assert_array_equal(found[name].targets, given.targets)


def test_many_columns_are_not_all_probed_and_texts_alone_have_no_noise() -> None:
    columns = tuple(Column(f"c{at}", "category", categories=("a",)) for at in range(50))
    form = Form("classification", classes=("no", "yes"), columns=columns)
    rows = Split(np.full((3, 50), 2.0), np.zeros(3, np.int64), ("a", "b", "c"))
    assert list(incomplete(rows, form)) == [f"without c{at}" for at in range(20)]
    assert noisy(rows, form, 8.0) == {}
    assert list(extreme_rows(form)) == ["all missing", "unknown categories"]


def test_extreme_rows_are_rows_of_the_form() -> None:
    found = extreme_rows(FORM)
    rows = np.concatenate(list(found.values()))
    assert list(found)[1:] == ["very large numbers", "very small numbers", "unknown categories"]
    assert np.isnan(rows[0, [0, 2]]).all()
    assert rows[:, 1].tolist() == [0, 2, 2, 1]
    np.testing.assert_allclose(rows[1:, 0], [40 + 2e7, 40 - 2e7, 40])
    hashes = tuple(f"{at:064x}" for at in range(len(rows)))
    check_split("extreme", Split(rows, np.zeros(len(rows), np.int64), hashes), FORM)

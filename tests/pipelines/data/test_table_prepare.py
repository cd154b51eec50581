from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import datasets

from pipelines.core import params_file
from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.data.card import describe
from pipelines.data.prepare import prepare
from pipelines.data.prepared import SPLITS, Card, load_card, load_split
from pipelines.data.table_file import read
from pipelines.data.table_rows import encode
from pipelines.pipeline import data_versions

Run = Callable[..., Card]


@pytest.fixture
def run(config: Callable[..., DataConfig], tmp_path: Path) -> Run:
    def make(task: str = "auto", out: str = "prepared", **changes: Any) -> Card:
        shares = {"validation": 0.2, "gate": 0.2, "test": 0.2}
        made = config(**({"source": "table", "path": "t.csv"} | shares | changes))
        place = {"root": tmp_path, "downloads": tmp_path / "down", "out": tmp_path / out}
        return prepare(made, task=task, **place)

    return make


def frame(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    """Return numbers, categories, dates, truths and gaps, and a class that follows from them."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "age": rng.integers(18, 90, rows),
            "height": np.round(rng.normal(170, 10, rows), 1),
            "town": rng.choice(["Köln", "Bonn", "東京"], rows),
            "member": rng.random(rows) < 0.5,
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, rows), "D"),
        }
    )
    table["kind"] = np.where(table.age + rng.normal(0, 5, rows) > 50, "old", "young")
    table.loc[rng.random(rows) < 0.1, "height"] = np.nan
    table.loc[rng.random(rows) < 0.1, "town"] = None
    return table


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def everything(folder: Path) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    splits = [load_split(folder, name) for name in SPLITS]
    inputs, targets = ([getattr(s, of) for s in splits] for of in ("inputs", "targets"))
    return np.concatenate(inputs), np.concatenate(targets)


SHIPPED = [
    ("diabetes", "regression"),
    ("wine", "classification"),
    ("breast_cancer", "classification"),
    ("iris", "classification"),
]


@pytest.mark.parametrize(("name", "task"), SHIPPED)
def test_tables_that_scikit_learn_ships(run: Run, tmp_path: Path, name: str, task: str) -> None:
    given = getattr(datasets, f"load_{name}")(as_frame=True).frame
    rng = np.random.default_rng(0)
    given.insert(0, "group", rng.choice(["a", "b", "ç"], len(given)))
    given = given.astype(dict.fromkeys(given.columns[:-1], object))
    gaps = rng.random((len(given), given.shape[1] - 1)) < 0.05
    given.iloc[:, :-1] = given.iloc[:, :-1].mask(gaps)
    given.to_csv(tmp_path / "t.csv", index=False)
    card = run()
    assert (card.form.task, card.form.kind) == (task, "rows")
    assert [column.kind for column in card.form.columns][:2] == ["category", "number"]
    assert card.total() == len(given)
    inputs, targets = everything(tmp_path / "prepared")
    assert np.isnan(inputs[:, 1:]).sum() + (inputs[:, 0] == 0).sum() == gaps.sum()
    numbers = given.iloc[:, 1:-1].to_numpy(float)
    for found, wanted in zip(inputs[:, 1:].T, numbers.T, strict=True):
        np.testing.assert_array_equal(np.sort(found), np.sort(wanted))
    wanted = np.sort(given["target"].to_numpy(float))
    np.testing.assert_array_equal(np.sort(targets.ravel()), wanted)
    assert f"{len(given)} rows" in describe(card)


def test_what_is_written_is_read_again_and_learnt_from_train_alone(
    run: Run, tmp_path: Path
) -> None:
    frame().to_csv(tmp_path / "t.csv", index=False)
    card = run()
    form = card.form
    assert load_card(tmp_path / "prepared").form == form
    assert form.classes == ("old", "young")
    assert [(c.name, c.kind, c.gaps) for c in form.columns] == [
        ("age", "number", False), ("height", "number", True), ("town", "category", True),
        ("member", "category", False), ("since", "number", False),
    ]  # fmt: skip
    assert form.columns[2].categories == ("Bonn", "Köln", "東京")
    assert form.columns[3].categories == ("false", "true")
    assert form.columns[4].dates
    train = load_split(tmp_path / "prepared", "train")
    assert form.columns[1].mean == pytest.approx(np.nanmean(train.inputs[:, 1]), rel=1e-12)
    assert form.columns[1].deviation == pytest.approx(np.nanstd(train.inputs[:, 1]), rel=1e-12)
    with Image.open(tmp_path / "prepared/examples.png") as picture:
        assert picture.width > 400
    assert not (tmp_path / "prepared/sample.png").exists()
    sample = read(tmp_path / "prepared/sample.csv", "sample")
    assert list(sample.cells) == [column.name for column in form.columns]
    rows, faults = encode(sample, form.columns)
    test = load_split(tmp_path / "prepared", "test").inputs
    assert faults == []
    assert any(np.array_equal(rows[0], row, equal_nan=True) for row in test)


def test_order_format_and_spelling_change_no_byte(run: Run, tmp_path: Path) -> None:
    given = frame()
    given.to_csv(tmp_path / "t.csv", index=False)
    run(out="one")
    mixed = given.sample(frac=1, random_state=1)
    mixed.to_csv(tmp_path / "t.csv", index=False, sep=";", float_format="%.3f", na_rep="?")
    run(out="two")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    (tmp_path / "t").mkdir()
    mixed.to_parquet(tmp_path / "t/rows.parquet")
    card = run(path="t/rows.parquet", out="three")
    assert card.data_hash == load_card(tmp_path / "one").data_hash


def test_equal_rows_stay_together_and_are_counted(run: Run, tmp_path: Path) -> None:
    given = frame()
    more = given.head(30).copy()
    more.loc[:9, "kind"] = np.where(more.loc[:9, "kind"] == "old", "young", "old")
    pd.concat([given, more]).to_csv(tmp_path / "t.csv", index=False)
    card = run()
    assert card.total() == 230
    said = " ".join(card.warnings)
    assert "30 rows repeat the cells of another one" in said
    assert "20 rows have equal cells and different targets (10 different ones)" in said


def test_a_row_that_is_added_moves_no_other(run: Run, tmp_path: Path) -> None:
    frame(150).to_csv(tmp_path / "t.csv", index=False)
    run(out="one")
    pd.concat([frame(150), frame(60, seed=1)]).to_csv(tmp_path / "t.csv", index=False)
    run(out="two")
    for name in SPLITS:
        old, new = (set(load_split(tmp_path / out, name).hashes) for out in ("one", "two"))
        assert old <= new


def test_official_sets_are_respected_and_leaks_counted(run: Run, tmp_path: Path) -> None:
    given = frame(300)
    (tmp_path / "sets").mkdir()
    parts = {"train": given[:210], "val": given[195:240], "test": given[230:]}
    for name, part in parts.items():
        part.to_csv(tmp_path / f"sets/{name}.csv", index=False)
    (tmp_path / "sets/notes.txt").write_text("hello")
    card = run(path="sets")
    assert (card.official_test, card.official_validation) == (True, True)
    assert card.total("test") == 70
    assert card.total("validation") == 35
    assert card.total("train") + card.total("gate") == 195
    assert card.leaks == 25
    assert any("25 rows left out" in warning for warning in card.warnings)
    assert any("notes.txt" in warning for warning in card.warnings)
    limited = run(path="sets", limit=100, out="limited")
    assert limited.total() == 100
    assert limited.total("test") == round(100 * 70 / 300)


def test_a_test_set_without_the_target_is_refused(run: Run, tmp_path: Path) -> None:
    given = frame()
    (tmp_path / "sets").mkdir()
    given.to_csv(tmp_path / "sets/train.csv", index=False)
    given.drop(columns="kind").to_csv(tmp_path / "sets/test.csv", index=False)
    with pytest.raises(UserError, match=r"different columns: test.csv has no column kind"):
        run(path="sets")
    (tmp_path / "sets/train.csv").rename(tmp_path / "sets/data.csv")
    with pytest.raises(UserError, match=r"no table named train.*2 files \(data.csv, test.csv\)"):
        run(path="sets")


def test_rows_are_appended_to_the_file_and_not_added_as_images_are(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[3] / "params.yaml", tmp_path)
    params_file.edit(tmp_path / "params.yaml", ["data.source=table", "data.path=data/t.csv"])
    params = params_file.load(tmp_path / "params.yaml")
    with pytest.raises(UserError, match=r"append rows to data/t\.csv"):
        data_versions.add(Layout(tmp_path), params, tmp_path, new_class=False)


def numbers(target: Sequence[Any], **more: Sequence[Any]) -> str:
    rng = np.random.default_rng(0)
    columns = {"x": np.round(rng.normal(0, 1, len(target)), 3), **more, "y": target}
    text = io.StringIO()
    pd.DataFrame(columns).to_csv(text, index=False)
    return text.getvalue()


TWO = [f"c{at % 2}" for at in range(120)]
MANY = list(range(120))
TORN = np.round(np.random.default_rng(1).normal(0, 9, 120), 2)


@pytest.mark.parametrize(
    ("text", "changes", "task", "words"),
    [
        (numbers(TWO), {"target": "Y2"}, "auto", ["data.target = 'Y2'", "no column 'Y2'", "near"]),
        (numbers(TWO, town=TWO), {"target": "twon"}, "auto", ["near: town (3 columns"]),
        (numbers(TWO), {"leave_out": "x,z"}, "auto", ["data.leave_out = 'x,z'", "'z'"]),
        (numbers(TWO), {"leave_out": "y"}, "auto", ["'y' is the target"]),
        (numbers(TWO), {"leave_out": "x"}, "auto", ["no column is left beside the target"]),
        (numbers(["a"] * 60), {}, "auto", ["data.target = 'y'", "one value only (a)"]),
        (numbers([None] * 60), {}, "auto", ["data.target = 'y'", "empty in every row"]),
        (numbers(TWO, z=TWO), {}, "auto", ["z determines the target y", "data.leave_out=z"]),
        (numbers(TWO, z=[at % 2 for at in MANY]), {}, "auto", ["z determines the target y"]),
        (numbers(TORN, z=TORN), {}, "auto", ["z determines the target y"]),
        (numbers(TORN, z=-3 * TORN), {"leave_out": ""}, "auto", ["z determines", "one to one"]),
        (numbers(TORN, z=TORN, w=TORN + 1), {}, "auto", ["z, w determine", "leave_out=z,w"]),
        (numbers(TWO), {}, "regression", ["line 2", "'c0', which is no number", "regression"]),
        (numbers(TORN), {}, "classification", ["task.name = 'classification'", "fractions"]),
        (numbers(range(1200)), {}, "classification", ["1200 different values, more than 1000"]),
        (numbers([f"t{at}" for at in range(1200)]), {}, "auto", ["more than 1000 classes"]),
        (numbers(["1,5", "2,5", "3"] * 40), {}, "auto", ["line 2", "a comma in a number"]),
        (numbers(TWO, z=["1,5", "2"] * 60), {}, "auto", ["line 2: z = '1,5'", "decimal point"]),
        (numbers(TWO, z=[*MANY[:-1], "-inf"]), {}, "auto", ["line 121: z = -inf: not a finite"]),
        (numbers([*TORN[:-1], "inf"]), {}, "auto", ["line 121: y = inf: not a finite number"]),
        (numbers(TWO), {"target": "x,y"}, "classification", ["takes one column, not 2"]),
        (numbers(TWO), {"sha256": "0" * 64}, "auto", ["has sha256"]),
        (numbers(TWO), {}, "reconstruction", ["must be images, not a table"]),
        (numbers(TWO[:4]), {}, "auto", ["the split", "is empty"]),
    ],
)
def test_a_table_that_cannot_be_learnt_is_refused(
    run: Run, tmp_path: Path, text: str, changes: dict[str, Any], task: str, words: list[str]
) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        run(task, **changes)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("target", "task", "classes", "values"),
    [
        (TWO, "classification", ("c0", "c1"), 0),
        ([at % 12 for at in MANY], "classification", tuple(map(str, range(12))), 0),
        ([1.0, 2.0, 10.0] * 40, "classification", ("1", "2", "10"), 0),
        (MANY, "regression", (), 1),
        ([0.5, 1.5, 2.0] * 40, "regression", (), 1),
        ([True, False, False] * 40, "classification", ("false", "true"), 0),
    ],
)
def test_the_task_follows_from_the_target(
    run: Run, tmp_path: Path, target: Any, task: str, classes: tuple[str, ...], values: int
) -> None:
    (tmp_path / "t.csv").write_text(numbers(target), encoding="utf-8")
    form = run().form
    assert (form.task, form.classes, len(form.values)) == (task, classes, values)
    if task == "classification" and classes[0] == "0":
        assert run("regression").form.values[0].name == "y"


def test_several_values_and_a_name_with_a_comma(run: Run, tmp_path: Path) -> None:
    text = numbers(TORN, **{"a, b": np.random.default_rng(2).normal(0, 1, 120)})
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    form = run(target="y, x").form
    assert [value.name for value in form.values] == ["y", "x"]
    assert [column.name for column in form.columns] == ["a, b"]
    assert load_split(tmp_path / "prepared", "train").targets.shape[1] == 2
    assert [value.name for value in run(target="a, b").form.values] == ["a, b"]


def test_columns_of_no_use_are_left_out_and_named(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    n = 3000
    odd = np.round(rng.normal(0, 1, n), 1).astype(object)
    odd[50] = "broken"
    columns = {
        "ids": [f"user {at}" for at in range(n)],
        "day": [f"{1 + at % 28}.{1 + at % 12}.2024" for at in range(n)],
        "many": [f"m{at % 1100}" for at in range(n)],
        "same": ["x"] * n,
        "gone": [None] * n,
        "row": range(n),
        "zip": rng.integers(0, 9, n),
        "odd": odd,
    }
    target = np.where(np.arange(n) < n - 1, rng.choice(["a", "b"], n), "c").astype(object)
    target[:7] = None
    (tmp_path / "t.csv").write_text(numbers(target, **columns), encoding="utf-8")
    card = run(categories="zip")
    kinds = {column.name: column.kind for column in card.form.columns}
    assert kinds == {"x": "number", "row": "number", "zip": "category", "odd": "category"}
    assert card.form.columns[2].categories == tuple(map(str, range(9)))
    said = "\n".join(card.warnings)
    for words in (
        "ids left out: almost every row has another text",
        "day left out: dates that are not written as in 2024-12-31",
        "many left out: 1100 categories",
        "1 column (same) left out: the same in all rows",
        "1 column (gone) left out: all cells missing",
        "row numbers the rows from 7 to 2999",
        "odd is one of categories because of 1 text (broken)",
        "7 of 3000 rows have no target",
        "1 class (c) with one example only",
    ):
        assert words in said

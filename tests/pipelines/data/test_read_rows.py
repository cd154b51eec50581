from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.core.errors import UserError
from pipelines.data.read_rows import from_records, read_rows
from pipelines.tasks.columns import Column
from pipelines.tasks.form import Form

COLUMNS = (
    Column("age", "number", 40.0, 20.0, gaps=True),
    Column("town", "category", categories=("Bonn", "Köln")),
    Column("zip", "category", categories=("53111", "50667")),
    Column("since", "number", 19000.0, 10.0, dates=True),
)
FORM = Form("classification", classes=("no", "yes"), columns=COLUMNS)
CSV = """since;kind;town;age;zip
2022-01-01;yes;"Köln";41.5;50667.0
1970-01-01T12:00;;Ulm;NA;?
"""
JSON = """{"since": "2022-01-01", "town": "Köln", "age": 41.5, "zip": 50667, "kind": "no"}

{"since": "1970-01-01 12:00", "town": "Ulm"}
"""
WANTED = np.array([[41.5, 3, 3, 18993], [np.nan, 1, 0, 0.5]])


class Stdin:
    def __init__(self, text: str) -> None:
        self.buffer = io.BytesIO(text.encode())


@pytest.mark.parametrize(("name", "text"), [("t.csv", CSV), ("t.jsonl", JSON)])
def test_rows_of_a_file_and_of_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    rows, labels = read_rows(path, FORM)
    np.testing.assert_array_equal(rows, WANTED)
    first = 2 if name == "t.csv" else 1
    assert labels == [f"{path}:{line}" for line in (first, 3)]
    monkeypatch.setattr(sys, "stdin", Stdin(text))
    again, labels = read_rows(Path("-"), FORM)
    np.testing.assert_array_equal(again, WANTED)
    assert labels[0] == f"stdin:{first}"


def test_records_are_rows_too() -> None:
    record = {"since": "2022-01-01", "town": None, "age": 41.5, "zip": "50667", "more": True}
    np.testing.assert_array_equal(from_records([record], FORM), [[41.5, 0, 3, 18993]])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "age,more\n1,2\n", ["lacks columns town, zip, since", "needs 4 columns"]),
        (
            "t.csv",
            "age,town,zip,since\nold,Bonn,1,2022-01-01\n1,Bonn,1,44000\ninf,,,\n",
            [
                *("3 cells do not fit", "line 2: age = 'old', needed: a finite number"),
                *("line 3: since = '44000', needed: a date", "line 4: age = 'inf'"),
            ],
        ),
        ("t.csv", "age,town\n1\n", ["line 2: 1 cells"]),
        ("t.png", "", ["no table; allowed: .csv", ".jsonl", "standard input"]),
        ("none.csv", None, ["does not exist"]),
    ],
)
def test_rows_that_do_not_fit_the_model_are_named(
    tmp_path: Path, name: str, text: str | None, words: list[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_rows(tmp_path / name, FORM)
    for word in (str(tmp_path / name), *words):
        assert word in str(error.value)


def test_a_model_of_images_takes_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    form = Form(
        "classification", classes=("a", "b"), size=8, channels=1, mean=(0.0,), deviation=(1.0,)
    )
    with pytest.raises(UserError, match="the model takes images"):
        read_rows(tmp_path / "t.csv", form)

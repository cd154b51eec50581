from __future__ import annotations

import csv
import gzip
import io
import json
import math
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.core.errors import UserError
from pipelines.data import table_cells as cells
from pipelines.data import table_file as files
from pipelines.data.table_columns import choose
from pipelines.data.table_rows import canonical, content_hashes, encode, learn, spread

NUMBERS = st.none() | st.floats(-1e300, 1e300) | st.integers(-(10**9), 10**9).map(float)
TEXTS = st.none() | st.sampled_from(["red", "grün", "東京", 'a "b", c', "two\nlines", "e\u0301"])
DAYS = st.none() | st.dates(date(1700, 1, 1), date(2200, 1, 1))
TRUTHS = st.none() | st.booleans()


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Any]]:
    n = draw(st.integers(2, 12))
    kinds = draw(st.lists(st.sampled_from([NUMBERS, TEXTS, DAYS, TRUTHS]), min_size=1, max_size=5))
    return {
        f"column {at} é": draw(st.lists(kind, min_size=n, max_size=n))
        for at, kind in enumerate(kinds)
    }


def written(columns: dict[str, list[Any]], delimiter: str) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


@settings(max_examples=30, deadline=None)
@given(tables(), st.sampled_from(",;\t|"))
def test_csv_parquet_and_json_give_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, columns: dict[str, list[Any]], delimiter: str
) -> None:
    folder = tmp_path_factory.mktemp("same")
    (folder / "t.csv").write_text(written(columns, delimiter), encoding="utf-8", newline="")
    (folder / "t.tsv.gz").write_bytes(gzip.compress(written(columns, delimiter).encode()))
    parquet.write_table(arrow.table(columns), folder / "t.parquet")
    lines = [
        json.dumps(dict(zip(columns, row, strict=True)), default=str)
        for row in zip(*columns.values(), strict=True)
    ]
    found = [files.read(folder / name, name) for name in ("t.csv", "t.tsv.gz", "t.parquet")]
    found.append(files.from_lines("\n".join(lines).encode(), "t.jsonl"))
    kept = [choose(table, (), ())[0] for table in found]
    assert kept[0] == kept[1] == kept[2] == kept[3]
    if not kept[0]:
        return
    learnt = [learn(t, kept[0], range(len(t))) for t in found]
    assert learnt[0] == learnt[1] == learnt[2] == learnt[3]
    rows = [encode(table, learnt[0]) for table in found]
    assert [faults for _, faults in rows] == [[]] * 4
    for other, _ in rows[1:]:
        np.testing.assert_array_equal(other, rows[0][0])
    canonicals = [canonical(table, kept[0]) for table in found]
    assert len({tuple(content_hashes(one, len(rows[0][0]))) for one in canonicals}) == 1
    for at, column in enumerate(learnt[0]):  # and they are what was written
        given = columns[column.name]
        known = ["", "?", *column.categories]
        for value, number in zip(given, rows[0][0][:, at], strict=True):
            if column.kind == "category":
                assert known[int(number)] == ("" if value is None else cells.clean(str(value)))
            elif value is None:
                assert math.isnan(number)
            elif isinstance(value, date):
                assert date(1970, 1, 1) + timedelta(number) == value
            else:
                assert number == value


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *(("1", 1.0), ("-2.5e-3", -0.0025), (".5", 0.5), ("+7.", 7.0), ("1e999", math.inf)),
        *(("-inf", -math.inf), ("1_000", None), ("１", None), ("0x10", None), ("1,5", None)),
        *(("", None), ("nan", None), ("1 2", None)),
    ],
)
def test_a_number_is_what_everybody_writes_as_one(cell: str, value: float | None) -> None:
    assert cells.number(cell) == value
    found = cells.numbers([cell or "0", "", "1"])
    if cell and value is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, [value or 0.0, math.nan, 1.0])


@given(st.sampled_from(cells.GAPS), st.sampled_from(["", " ", "\t"]), st.booleans())
def test_every_documented_word_is_a_gap(word: str, space: str, upper: bool) -> None:
    assert cells.clean(space + (word.upper() if upper else word) + space) == ""


def test_words_that_are_no_gaps_stay() -> None:
    assert [cells.clean(word) for word in ("none", "-", "0", "north", "nan0")] == [
        "none", "-", "0", "north", "nan0"
    ]  # fmt: skip
    assert [cells.clean(word) for word in ("TRUE", "False")] == ["true", "false"]


@given(st.datetimes(datetime(1600, 1, 1), datetime(2500, 1, 1)))
def test_a_date_is_its_days(moment: datetime) -> None:
    days = (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(1)
    for text in (moment.isoformat(), moment.isoformat(" ") + "Z", moment.isoformat() + "+00:00"):
        assert cells.days(text) == pytest.approx(days, rel=1e-12)
    assert cells.days("2023-02-30") is None
    assert cells.days("20230201") is None


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20), st.randoms())
def test_the_spread_does_not_depend_on_the_order(values: list[float], random: Any) -> None:
    mixed = random.sample(values, len(values))
    assert spread(values) == spread(mixed)
    mean, deviation = spread(values)
    assert math.isfinite(mean)
    assert 0 < deviation < math.inf
    if max(map(abs, values)) < 1e100 and np.std(values) > 1e-6 * max(map(abs, values)):
        assert mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9 * deviation)
        assert deviation == pytest.approx(np.std(values), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"", ["empty"]),
        ("t.csv", b"\xef\xbb\xbf \n\n", ["empty"]),
        ("t.csv", b"a,b\n", ["no rows below the column names"]),
        ("t.csv", b"a,b,a\n1,2,3\n", ["'a' occurs twice"]),
        ("t.csv", b",b, \n1,2,3\n", ["column 1 has no name", "column 3 has no name"]),
        ("t.csv", b"a\x1b,b\n1,2\n", ["column 1: its name is not printable"]),
        ("t.csv", b"a,b\n1,2\n3\n4,5,6\n", ["line 3: 1 cells, but 2 column names", "line 4: 3"]),
        ("t.csv", b'a,b\n1,"x\ny"\n3\n', ["line 4: 1 cells"]),
        ("t.csv", b'a,b\n1,2\n"3,4\n5,6\n', ["line 3: not a CSV", "unexpected end"]),
        ("t.csv", b'a,b\n"1"2,3\n', ["line 2: not a CSV"]),
        ("t.csv", "a,b\n1,ä\n".encode("latin-1"), ["line 2: not in UTF-8", "save it as UTF-8"]),
        ("t.csv", "a,b\n1,2\n".encode("utf-16"), ["not in UTF-8"]),
        ("t.csv", b"a,b\n1,\0\n", ["zero bytes"]),
        ("t.csv.gz", b"a,b\n1,2\n", ["not a whole gzip file"]),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-9], ["not a whole gzip file"]),
        ("t.parquet", b"PAR1", ["not a whole Parquet file"]),
        ("t.parquet", b"a,b\n1,2\n", ["not a whole Parquet file"]),
        ("t.xlsx", b"PK", ["no table; allowed: .csv", ".parquet"]),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        files.read(tmp_path / name, f"data.path = {name!r}")
    for word in (f"data.path = {name!r}", *words):
        assert word in str(error.value)


def test_many_faults_are_one_message() -> None:
    text = "a,b\n" + "1\n" * 30
    with pytest.raises(UserError, match="30 lines do not fit the header") as error:
        files.from_text(text, "t.csv")
    assert str(error.value).count("\n") == files.NAMED + 1
    assert "and 10 more" in str(error.value)


def test_lines_count_from_one_also_after_a_quoted_newline() -> None:
    table = files.from_text('\ufeffa;b\r\n1;"x\r\ny"\r\n\r\n2; "z"\r\n', "t.csv")
    assert list(table.lines) == [2, 5]
    assert dict(table.cells) == {"a": ["1", "2"], "b": ["x\r\ny", "z"]}


def test_pandas_index_is_no_column_and_a_list_is_no_cell(tmp_path: Path) -> None:
    columns = {"a": [1.5, None], "__index_level_0__": [0, 1], "l": [[1], [2]]}
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    table = files.read(tmp_path / "t.parquet", "t")
    assert dict(table.cells) == {"a": ["1.5", ""]}
    assert list(table.unread) == ["l"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('{"a": 1}\n[1]\n', "line 2: not a JSON object"),
        ('{"a": 1}\n{"a"\n', "line 2: not JSON"),
        ('{"a": [1]}\n', "line 1: a is a list"),
        ("\n", "no rows"),
    ],
)
def test_what_is_wrong_with_lines_of_json_is_named(lines: str, words: str) -> None:
    with pytest.raises(UserError, match="stdin") as error:
        files.from_lines(lines.encode(), "stdin")
    assert words in str(error.value)


def test_thousands_of_columns() -> None:
    header = ",".join(f"c{at}" for at in range(5000))
    rows = "\n".join(",".join(str(at * row) for at in range(5000)) for row in (1, 2, 3))
    table = files.from_text(f"{header}\n{rows}\n", "wide.csv")
    kept, _ = choose(table, (), ())
    assert len(kept) == 4999  # c0 is 0 everywhere
    assert encode(table, learn(table, kept, (0, 1)))[0].shape == (3, 4999)

"""A table in pieces holds what the table as a whole does."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.errors import UserError
from pipelines.data.table_chunks import TableFault, chunks
from pipelines.data.table_file import Table, read

CELLS = st.text(alphabet='ab1.,;\t|" \n\r\u00e9\u0301NAtrue', max_size=6)


def pieces(path: Path, size: int) -> tuple[dict[str, list[str]], list[int], list[TableFault]]:
    cells: dict[str, list[str]] = {}
    lines: list[int] = []
    faults = []
    for piece in chunks(path, path.name, size):
        if isinstance(piece, TableFault):
            faults.append(piece)
            continue
        assert 1 <= len(piece) <= size
        lines += [int(line) for line in piece.lines]
        for name, column in piece.cells.items():
            cells.setdefault(name, []).extend(column)
    return cells, lines, faults


def same(path: Path, size: int) -> None:
    try:
        whole: Table | str = read(path, path.name)
    except UserError as error:
        whole = str(error)
    try:
        cells, lines, faults = pieces(path, size)
    except UserError:
        assert isinstance(whole, str), whole
        return
    if isinstance(whole, str):
        assert faults or not lines, whole
        return
    assert not faults
    assert lines == [int(line) for line in whole.lines]
    assert cells == {name: list(column) for name, column in whole.cells.items()}


@given(rows=st.lists(st.lists(CELLS, min_size=1, max_size=3), max_size=8), size=st.integers(1, 4))
def test_any_text(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text("\n".join(";".join(row) for row in rows), encoding="utf-8", newline="")
    same(path, size)
    quoted = "\n".join(
        ";".join(f'"{c.replace(chr(34), chr(34) * 2)}"' for c in row) for row in rows
    )
    path.write_text(quoted, encoding="utf-8-sig", newline="")
    same(path, size)


def test_parquet_and_gzip(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1.5, None, 3.0] * 50, "b": ["x", None, "é"] * 50})
    table["c"] = table["b"].astype("category")
    table.to_parquet(tmp_path / "t.parquet", row_group_size=40)
    same(tmp_path / "t.parquet", 7)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(table.to_csv(index=False).encode()))
    same(tmp_path / "t.csv.gz", 7)


@pytest.mark.parametrize(
    ("content", "rows", "message"),
    [
        (b"a,b\n1,2\n3\n4,5\n", 2, "1 cells, but 2 column names"),
        (b"a,b\n1,2\n" + b'3,"x\n' * 3, 1, "not read from here on: not a CSV"),
        (b"a,b\n" + b"1,2\n" * 9000 + b"\xff,2\n", None, "not read from here on: not in UTF-8"),
        (b"a,b\n1,2\n3,\0\n", 1, "zero byte"),
    ],
)
def test_what_is_no_row_is_said_of_its_line(
    tmp_path: Path, content: bytes, rows: int | None, message: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    _, lines, faults = pieces(tmp_path / "t.csv", 2)
    assert [message in fault.reason for fault in faults] == [True]
    assert rows is None or len(lines) == rows
    assert rows is not None or 0 < len(lines) <= 9000
    if rows is None:
        assert faults[0].line == len(lines) + 2


@pytest.mark.parametrize("content", [b"", b"\n \n", b"a,a\n1,2\n", b"\xff\n", b"a,,b\n1,2,3\n"])
def test_a_table_without_column_names_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"t\.csv"):
        pieces(tmp_path / "t.csv", 2)


def test_a_truncated_gzip_gives_the_rows_before(tmp_path: Path) -> None:
    content = gzip.compress("\n".join(["a,b", *(f"{n},{n * 7919}" for n in range(20000))]).encode())
    (tmp_path / "t.csv.gz").write_bytes(content[: len(content) // 2])
    _, lines, faults = pieces(tmp_path / "t.csv.gz", 500)
    assert lines == list(range(2, len(lines) + 2))
    assert "not a whole gzip file" in faults[-1].reason


def test_a_line_without_end_is_not_taken_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.data import table_chunks

    monkeypatch.setattr(table_chunks, "_LONGEST_LINE", 1000)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n" + "3" * 5000)
    _, lines, faults = pieces(tmp_path / "t.csv", 2)
    assert lines == [2]
    assert "a line of more than 1000 characters" in faults[0].reason

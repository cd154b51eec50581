"""A table in pieces of some rows, so that one larger than the memory can be answered.

The cells are those that `pipelines.data.table_file.read` returns. Faults that it refuses a table
for, in one line, are said of that line here, and reading goes on.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipelines.core.errors import UserError
from pipelines.data.table_file import (
    ENDINGS,
    PARQUET,
    Table,
    cleaned,
    delimiter,
    header_names,
    is_table,
    parquet_table,
)

_LONGEST_LINE = 2**24
"""Most characters of a line; a file of one endless line would take all memory."""


@dataclass(frozen=True)
class TableFault:
    """A line that is no row.

    Attributes:
        line: Its number in the file, from 1.
        reason: What is wrong with it.
    """

    line: int
    reason: str


def chunks(path: Path, where: str, size: int) -> Iterator[Table | TableFault]:
    """Yield the rows of a table, at most `size` at a time, and the lines that are none, in order.

    Args:
        path: A file whose name ends like one of `ENDINGS`.
        where: What to call it in messages.
        size: Most rows of a piece.

    Raises:
        UserError: If it cannot be read or its column names are wrong. What is found wrong after
            the column names is a `TableFault` instead.
    """
    if not is_table(path.name):
        raise UserError(f"{where}: no table; allowed: {', '.join(ENDINGS)}")
    found = _parquet if path.name.lower().endswith(PARQUET) else _delimited
    yield from found(path, where, size)


def _parquet(path: Path, where: str, size: int) -> Iterator[Table | TableFault]:
    import pyarrow as arrow  # here, because it takes a moment and most tables are CSVs
    import pyarrow.parquet as parquet

    done = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=size):
                if batch.num_rows:
                    yield parquet_table(arrow.Table.from_batches([batch]), where, done)
                    done += batch.num_rows
    except (arrow.ArrowException, UnicodeDecodeError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        if not done:
            raise UserError(f"{where}: not a whole Parquet file: {said}") from None
        yield TableFault(done + 1, f"not read from here on: {said}")


def _delimited(path: Path, where: str, size: int) -> Iterator[Table | TableFault]:
    names: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []

    def taken() -> Table:
        columns = zip(*rows, strict=True)
        cells = {name: cleaned(column) for name, column in zip(names, columns, strict=True)}
        return Table(where, cells, list(lines))

    for line, cells in _records(path):
        if not names:
            if isinstance(cells, str):
                raise UserError(f"{where}: {cells}")
            names = header_names(cells, where)
            continue
        fault = ""
        if isinstance(cells, str):
            fault = f"not read from here on: {cells}"
        elif len(cells) == 1 < len(names) and not cells[0].strip():
            continue  # a line of blanks
        elif len(cells) != len(names):
            fault = f"{len(cells)} cells, but {len(names)} column names"
        else:
            rows.append(cells)
            lines.append(line)
        if rows and (fault or len(rows) == size):
            yield taken()
            rows.clear()
            lines.clear()
        if fault:
            yield TableFault(line, fault)
    if rows:
        yield taken()
    if not names:
        raise UserError(f"{where}: empty; needed: a line of column names, and rows")


def _records(path: Path) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the line on which each record begins, and its cells; last, why it cannot be read on."""
    begins = 1
    try:
        with _opened(path) as file:
            separator = _delimiter_of(file)
            reader = csv.reader(
                _lines(file), delimiter=separator, strict=True, skipinitialspace=True
            )
            header = False
            for cells in reader:
                header = header or len(cells) > 1 or bool(cells and cells[0].strip())
                if cells and header:
                    yield begins, cells
                begins = reader.line_num + 1
    except UnicodeDecodeError:
        yield begins, "not in UTF-8; save it as UTF-8"
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield begins, f"not a whole gzip file: {error}"
    except (csv.Error, ValueError) as error:
        yield begins, f"not a CSV: {error}"
    except OSError as error:
        yield begins, f"cannot be read: {error.strerror or error}"


def _opened(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _delimiter_of(file: IO[str]) -> str:
    """Return what separates cells, by the first line that is not blank; the file is rewound."""
    # As `str.splitlines` sees lines, which knows more ends than a file does.
    lines = (part for line in _lines(file) for part in line.splitlines())
    found = delimiter(next((line for line in lines if line.strip()), ""))
    file.seek(0)
    return found


def _lines(file: IO[str]) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ValueError(f"a line of more than {_LONGEST_LINE} characters")
        if "\0" in line:
            raise ValueError("a zero byte; not a text file")
        yield line

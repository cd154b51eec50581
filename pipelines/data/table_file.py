"""Tables as they lie in files: CSV, TSV, either one gzipped, Parquet, and lines of JSON."""

from __future__ import annotations

import csv
import gzip
import io
import json
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.core.errors import UserError
from pipelines.core.text import shown
from pipelines.data.table_cells import clean

DELIMITED, PARQUET, LINES = (".csv", ".tsv"), (".parquet", ".pq"), (".jsonl", ".ndjson")
ENDINGS = (*DELIMITED, *(f"{end}.gz" for end in DELIMITED), *PARQUET)
"""How the name of a table ends, in lower case."""
MOST_BYTES = 2**30
"""Most bytes of a CSV, unpacked."""
NAMED = 20
"""Most faults that one message names."""
_DELIMITERS = ",;\t|"
_PANDAS_INDEX = "__index_level_"


@dataclass(frozen=True)
class Table:
    """A table as texts.

    Attributes:
        where: The file, for messages.
        cells: Name of a column → its cells [n], each as `clean` returns it: empty is missing.
        lines: Where each row begins, [n]: the line of the file, from 1; of Parquet the row. Of
            several files together with the file's name.
        unread: Name of a column whose values are no cells → what they are, such as `list<int64>`.
    """

    where: str
    cells: Mapping[str, Sequence[str]]
    lines: Sequence[int | str]
    unread: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def rows(self, places: Sequence[int]) -> Table:
        """Return a table of some of the rows."""
        cells = {name: [column[at] for at in places] for name, column in self.cells.items()}
        return replace(self, cells=cells, lines=[self.lines[at] for at in places])


def is_table(name: str) -> bool:
    """Say whether a file's name is that of a table."""
    return name.lower().endswith(ENDINGS)


def read(path: Path, where: str) -> Table:
    """Read a table.

    Args:
        path: A file whose name ends like one of `ENDINGS`.
        where: What to call it in messages.

    Raises:
        UserError: If it cannot be read, is no such file, is empty, has a header alone, has names
            that are empty or occur twice, or has lines of different lengths.
    """
    if not is_table(path.name):
        raise UserError(f"{where}: no table; allowed: {', '.join(ENDINGS)}")
    try:
        if path.name.lower().endswith(PARQUET):
            return from_parquet(path, where)
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    if path.name.lower().endswith(".gz"):
        content = _unpacked(content, where)
    return from_bytes(content, where)


def from_bytes(content: bytes, where: str) -> Table:
    """Return the table in a CSV's bytes.

    Raises:
        UserError: See `read`.
    """
    return from_text(_decoded(content, where), where)


def from_text(text: str, where: str) -> Table:
    """Return the table in a CSV's text.

    The delimiter is a comma, semicolon, tab or bar, whichever the header has most of.

    Raises:
        UserError: See `read`.
    """
    text = text.removeprefix("\ufeff")
    empty = f"{where}: empty; needed: a line of column names, and rows"
    if not text.strip():
        raise UserError(empty)
    if "\0" in text:
        raise UserError(f"{where}: holds zero bytes; not a text file")
    records = _records(text, where)
    header = next((cells for _, cells in records if len(cells) > 1 or cells[0].strip()), None)
    if header is None:  # quotes with nothing in them
        raise UserError(empty)
    names = header_names(header, where)
    rows: list[list[str]] = []
    lines: list[int] = []
    ragged: list[str] = []
    for line, cells in records:
        if len(cells) == 1 < len(names) and not cells[0].strip():
            continue  # a line of blanks
        if len(cells) != len(names):
            ragged.append(f"line {line}: {len(cells)} cells, but {len(names)} column names")
        else:
            rows.append(cells)
            lines.append(line)
    if ragged:
        raise UserError(told(where, ragged, "lines do not fit the header"))
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    found = {name: cleaned(cells) for name, cells in zip(names, columns, strict=True)}
    return _with_rows(Table(where, found, lines))


def from_records(
    records: Sequence[Mapping[str, Any]], where: str, lines: Sequence[int] = ()
) -> Table:
    """Return records, such as those of JSON, as a table; a name that one lacks is missing in it.

    Args:
        records: Column → text, number, truth value or None.
        where: What to call them in messages.
        lines: The line of each; default: 1, 2, …

    Raises:
        UserError: If a value is a list or a mapping, or there are no records.
    """
    lines = lines or range(1, len(records) + 1)
    records = [{_name(name): value for name, value in record.items()} for record in records]
    names = list(dict.fromkeys(name for record in records for name in record))
    bad = [
        f"line {line}: {shown(name)} is a {type(value).__name__}, not text or a number"
        for line, record in zip(lines, records, strict=True)
        for name, value in record.items()
        if not (value is None or isinstance(value, str | int | float))
    ]
    if bad:
        raise UserError(told(where, bad, "values are no cells"))
    cells = {name: [_cell(record.get(name)) for record in records] for name in names}
    return _with_rows(Table(where, cells, lines))


def from_lines(content: bytes, where: str) -> Table:
    """Return the table in lines of JSON, one object each.

    Raises:
        UserError: If a line is not a JSON object, or see `from_records`.
    """
    records: list[Mapping[str, Any]] = []
    lines: list[int] = []
    for line, text in enumerate(_decoded(content, where).removeprefix("\ufeff").splitlines(), 1):
        try:
            record = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            raise UserError(f"{where}: line {line}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f'{where}: line {line}: not a JSON object, such as {{"age": 3}}')
        if text.strip():
            records.append(record)
            lines.append(line)
    return from_records(records, where, lines)


def told(where: str, faults: Sequence[str], what: str) -> str:
    """Return one message of all faults, the first `NAMED` of them by name."""
    if len(faults) == 1:
        return f"{where}: {faults[0]}"
    more = [f"and {len(faults) - NAMED} more"] if len(faults) > NAMED else []
    return "\n  ".join([f"{where}: {len(faults)} {what}:", *faults[:NAMED], *more])


def _with_rows(table: Table) -> Table:
    if not len(table):
        raise UserError(f"{table.where}: no rows below the column names")
    return table


def _unpacked(content: bytes, where: str) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where}: not a whole gzip file: {error}") from None


def _decoded(content: bytes, where: str) -> str:
    if len(content) > MOST_BYTES:
        raise UserError(f"{where}: larger than {MOST_BYTES >> 30} GiB; write it as Parquet")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where}: line {line}: not in UTF-8 (byte {error.start}); save it as UTF-8"
        ) from None


def _records(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line on which each record begins, and its cells; blank lines are passed over."""
    stream = io.StringIO(text, newline="")
    first = next(line for line in text.splitlines() if line.strip())
    reader = csv.reader(stream, delimiter=delimiter(first), strict=True, skipinitialspace=True)
    begins = 1
    try:
        for cells in reader:
            if cells:
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        # A quote that is never closed takes all that follows: where it opened is what helps.
        raise UserError(f"{where}: line {begins}: not a CSV: {error}") from None


def delimiter(line: str) -> str:
    """Return what separates cells, of those that may: what a line of column names has most of."""
    bare = "".join(line.split('"')[::2])
    return max(_DELIMITERS, key=bare.count)


def header_names(header: Sequence[str], where: str) -> list[str]:
    """Return the names of columns.

    Raises:
        UserError: If one is empty, occurs twice, or cannot be printed.
    """
    names = [_name(name) for name in header]
    bad = [f"column {at} has no name" for at, name in enumerate(names, 1) if not name]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    bad += [f"the name {shown(name)!r} occurs twice" for name in twice]
    bad += [
        f"column {at}: its name is not printable: {name!a}"
        for at, name in enumerate(names, 1)
        if shown(name) != name
    ]
    if bad:
        raise UserError(told(where, bad, "faults in the column names"))
    return names


def _name(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


def cleaned(cells: Sequence[str]) -> list[str]:
    """Return cells as `clean` returns each."""
    seen = {cell: clean(cell) for cell in set(cells)}  # equal cells are one object: less memory
    return [seen[cell] for cell in cells]


def _cell(value: Any) -> str:
    """Return a value of Python as a cell; numbers are those that `float` reads back."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    cell = str(value)
    # Parquet and JSON can hold what no CSV can: half a character, and the zero byte.
    return clean(cell if cell.isascii() else cell.encode("utf-8", "replace").decode()).replace(
        "\0", "?"
    )


def from_parquet(source: Path | bytes, where: str, most: int | None = None) -> Table:
    """Return the table in a Parquet file, or in its bytes.

    Args:
        source: Of the table.
        where: What to call it in messages.
        most: Bytes that its columns may say they unpack to, and cells that it may say it has;
            default: any.

    Raises:
        UserError: See `read`; or if it is larger than `most`.
    """
    import pyarrow as arrow  # here, because it takes a moment and most tables are CSVs
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(arrow.BufferReader(source) if type(source) is bytes else source)
        if most is not None:
            said = file.metadata
            groups = [said.row_group(at) for at in range(said.num_row_groups)]
            size = sum(group.total_byte_size for group in groups)
            if max(size, said.num_rows * said.num_columns) > most:
                raise UserError(f"{where}: unpacks to more than {most} bytes or cells")
        found = file.read()
    except (arrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if type(source) is not bytes and isinstance(error, OSError) and error.errno:
            raise  # of the disk
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: not a whole Parquet file: {said}") from None
    return _with_rows(parquet_table(found, where))


def parquet_table(found: Any, where: str, before: int = 0) -> Table:
    """Return a table of pyarrow as texts.

    Args:
        found: The table.
        where: What to call it in messages.
        before: How many rows of the file come before it.

    Raises:
        UserError: If a name of a column is wrong.
    """
    import pyarrow as arrow

    keep = [name for name in found.column_names if not name.startswith(_PANDAS_INDEX)]
    kinds = arrow.types
    cells: dict[str, list[str]] = {}
    unread: dict[str, str] = {}
    for name, called in zip(keep, header_names(keep, where), strict=True):
        column = found.column(name)
        kind = column.type
        if kinds.is_dictionary(kind):
            kind = kind.value_type
            column = column.cast(kind)
        if kinds.is_timestamp(kind) or kinds.is_date(kind):
            column = column.cast(arrow.string())
        elif not (
            any(of(kind) for of in (kinds.is_boolean, kinds.is_integer, kinds.is_floating))
            or any(of(kind) for of in (kinds.is_decimal, kinds.is_null))
            or any(of(kind) for of in (kinds.is_string, kinds.is_large_string))
            or kinds.is_string_view(kind)
        ):
            unread[called] = str(kind)
            continue
        cells[called] = [_cell(value) for value in column.to_pylist()]
    lines = range(before + 1, before + found.num_rows + 1)
    return Table(where, cells, lines, unread)

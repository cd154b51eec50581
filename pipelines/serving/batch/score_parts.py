"""The finished parts of a scoring that goes on: files beside the result, each written whole.

A part holds the answers to inputs that follow one another, and the reasons of those that have
none. Its name says which inputs. A run that was killed leaves its parts; the next one that is
asked the same (its key) goes on after the last whole part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path, read_json, write_json
from pipelines.core.text import shown
from pipelines.serving.batch.score_columns import NUMBER, REASON, AnswerColumns, Batch
from pipelines.systems.locks import take

_KEY, _LOCK, LISTING = "key.json", "lock", "inputs"
_NAME = re.compile(r"([0-9]{12})-([0-9]{12})\.parquet")


@dataclass(frozen=True)
class FinishedPart:
    """A finished part.

    Attributes:
        start: Number of its first input.
        end: Number after that of its last.
        path: Its file.
        quarantined: How many of them have no answer.
    """

    start: int
    end: int
    path: Path
    quarantined: int


class ScoreParts:
    """The parts of one result.

    Args:
        folder: Where they lie; held by this process, see `held`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: list[FinishedPart] = []
        self._columns: AnswerColumns
        self._key: str

    def resume(self, columns: AnswerColumns, key: str) -> int:
        """Find the parts that a run with the same key left; remove all others.

        Args:
            columns: Of the answers.
            key: Of the work: hash of model, inputs and whatever else decides the answers.

        Returns:
            The number of the first input that no part answers.
        """
        self._columns, self._key, self._found = columns, key, []
        record = self.folder / _KEY
        try:
            same = read_json(record) == {"key": key}
        except (OSError, ValueError):
            same = False
        for path in sorted(self.folder.iterdir()):
            if found := _NAME.fullmatch(path.name):
                start, end = int(found[1]), int(found[2])
                table = self._table(start, end, path) if same and start == self.done else None
                if table is None:
                    path.unlink()
                else:
                    self._found.append(_part(start, table, path))
        if not same:
            write_json(record, {"key": key})
        return self.done

    @property
    def done(self) -> int:
        """How many inputs the parts answer."""
        return self._found[-1].end if self._found else 0

    @property
    def quarantined(self) -> int:
        """How many of them have no answer."""
        return sum(part.quarantined for part in self._found)

    def add(self, batches: Sequence[Batch]) -> None:
        """Write a part that follows the others.

        Raises:
            OSError: If the disk does not take it.
        """
        table = self._columns.table(self.done, batches, self._key)
        end = self.done + table.num_rows
        path = self.folder / f"{self.done:012d}-{end:012d}.parquet"
        with atomic_path(path) as temporary:
            parquet.write_table(table, temporary, write_page_checksum=True)
        self._found.append(_part(self.done, table, path))

    def tables(self) -> Iterator[Any]:
        """Yield the parts as tables, in order.

        Raises:
            UserError: If one was damaged since it was written.
        """
        for part in self._found:
            if (table := self._table(part.start, part.end, part.path)) is None:
                raise UserError(f"{shown(part.path)}: was changed meanwhile; run it again")
            yield table

    def remove(self) -> None:
        """Remove the parts and their folder, if nothing else is in it."""
        for part in self._found:
            part.path.unlink(missing_ok=True)
        for name in (LISTING, _KEY, _LOCK):
            (self.folder / name).unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except OSError:  # what a user has put there stays
            return

    def _table(self, start: int, end: int, path: Path) -> Any | None:
        """Return a part's table; None if it is not what was written."""
        try:
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read()
        except (arrow.ArrowException, OSError, ValueError):
            return None
        schema = self._columns.part_schema(self._key)
        sound = table.schema.equals(schema, check_metadata=True) and np.array_equal(
            table.column(NUMBER).to_numpy(), np.arange(start, end)
        )
        return table if sound and end > start else None


def _part(start: int, table: Any, path: Path) -> FinishedPart:
    missing = table.num_rows - table.column(REASON).null_count
    return FinishedPart(start, start + table.num_rows, path, missing)


@contextmanager
def held(folder: Path) -> Iterator[ScoreParts]:
    """Make the folder of the parts, and keep other processes out of it.

    Raises:
        UserError: If another process holds it, or it is a folder of something else.
        OSError: If it cannot be made.
    """
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise UserError(f"{shown(folder)}: is in the way; move it away") from None
        names = {path.name for path in folder.iterdir()}
        if names and not names & {_KEY, _LOCK}:
            raise UserError(
                f"{shown(folder)}: holds other files than those of an unfinished scoring; move it "
                "away, or give --out another name"
            ) from None
    with (folder / _LOCK).open("a") as lock:
        if not take(lock):
            raise UserError(f"{shown(folder)}: another process is at work on it")
        if os.fstat(lock.fileno()).st_ino != (folder / _LOCK).stat().st_ino:
            raise UserError(f"{shown(folder)}: another process was at work; run it again")
        for left in (*folder.glob(".*.parquet.*"), *folder.glob(f".{_KEY}.*")):
            left.unlink()  # of a writer that was killed
        parts = ScoreParts(folder)
        try:
            yield parts
        finally:
            if not parts.done:
                parts.remove()

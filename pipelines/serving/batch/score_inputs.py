"""What `prong score` is given: images of a folder or an archive, or rows of tables, in one order.

Every file is an input, or a row of a table is; one that cannot be read comes with the reason. What
is listed does not lie in memory, and of images only those that are being decoded do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.core.text import shown
from pipelines.data import archives
from pipelines.data.collection import Encoded
from pipelines.data.images import decode
from pipelines.data.read_rows import encoded
from pipelines.data.table_chunks import TableFault, chunks
from pipelines.data.table_file import ENDINGS, Table, is_table
from pipelines.serving.batch.folder_listing import FolderListing
from pipelines.tasks.form import Form

_IMAGES = 32  # per unit of work
_ROWS = 256
_BYTES = 8 * 2**20  # of encoded images per unit of work
_HEAVY = 2**20  # what a unit of work is taken to weigh whose size is not known


@dataclass(frozen=True)
class NamedInputs:
    """Some inputs that follow one another.

    Attributes:
        names: Of all of them, [n].
        reasons: Why each cannot be answered; empty: it can.
        arrays: Those that can be, as the model takes them, [readable, *input_shape].
    """

    names: list[str]
    reasons: list[str]
    arrays: NDArray[Any]

    def split(self, at: int) -> tuple[NamedInputs, NamedInputs]:
        """Return the first so many inputs, and the others."""
        readable = sum(not reason for reason in self.reasons[:at])
        return (
            NamedInputs(self.names[:at], self.reasons[:at], self.arrays[:readable]),
            NamedInputs(self.names[at:], self.reasons[at:], self.arrays[readable:]),
        )


class InputSource(Protocol):
    """Where inputs come from."""

    @property
    def count(self) -> int | None:
        """How many there are; None if only reading tells."""

    def pieces(self, start: int) -> Iterator[Any]:
        """Yield units of work from the input of that number on; for one thread."""

    def inputs(self, piece: Any) -> NamedInputs:
        """Return the inputs of a unit of work; called by several threads."""

    def weight(self, piece: Any) -> int:
        """Return how much memory a unit of work takes, bytes."""


def text_of(name: str) -> str:
    r"""Return a file's name as text that UTF-8 can hold: a byte that was not UTF-8 as `\xff`."""
    return os.fsencode(name).decode(errors="backslashreplace")


Images = list[tuple[str, Path | Encoded]]
"""Names, and the file, its bytes, or what is wrong with it."""


class _ImageSource:
    def __init__(self, form: Form) -> None:
        self._form = form

    def inputs(self, piece: Images) -> NamedInputs:
        form, names, reasons = self._form, [], []
        arrays = []
        for name, content in piece:
            names.append(text_of(name))
            try:
                if isinstance(content, UserError):
                    raise content
                if isinstance(content, Path) and not content.is_file():
                    raise UserError("a link that leads nowhere, or no regular file")
                arrays.append(
                    decode(
                        content,
                        size=form.size,
                        channels=form.channels,
                        bits=form.bits,
                        name=shown(name),
                    )
                )
                reasons.append("")
            except (UserError, OSError) as error:
                reasons.append(shown(error) or type(error).__name__)
        empty = np.zeros((0, *form.input_shape), form.dtype)
        return NamedInputs(names, reasons, np.stack(arrays) if arrays else empty)

    def weight(self, piece: Images) -> int:
        return sum(len(one) for _, one in piece if isinstance(one, bytes)) or _HEAVY


class FolderOfImages(_ImageSource):
    """The files below a folder.

    Args:
        folder: The folder.
        listed: What is below it.
        form: Of the model.
    """

    def __init__(self, folder: Path, listed: FolderListing, form: Form) -> None:
        super().__init__(form)
        self._folder, self._listed = folder, listed

    @property
    def count(self) -> int:
        """How many files there are."""
        return self._listed.count

    def pieces(self, start: int) -> Iterator[Images]:
        """Yield names and paths."""
        piece: Images = []
        for name in self._listed.names(start):
            piece.append((name, self._folder / name))
            if len(piece) == _IMAGES:
                yield piece
                piece = []
        if piece:
            yield piece


class ArchiveOfImages(_ImageSource):
    """The files in a tar or zip.

    Args:
        path: The archive.
        form: Of the model.
    """

    count = None

    def __init__(self, path: Path, form: Form) -> None:
        super().__init__(form)
        self._path = path

    def pieces(self, start: int) -> Iterator[Images]:
        """Yield names and bytes."""
        piece: Images = []
        weight = 0
        for name, content in archives.stream(self._path, shown(self._path), start):
            piece.append((name, content))
            weight += len(content) if isinstance(content, bytes) else 0
            if len(piece) == _IMAGES or weight > _BYTES:
                yield piece
                piece, weight = [], 0
        if piece:
            yield piece


Rows = tuple[str, Table | TableFault | UserError]
"""A table's name, and some of its rows, a line that is none, or why it cannot be read."""


class TableRows:
    """The rows of tables.

    Args:
        folder: A table, or the folder of some.
        listed: What is below a folder; a file that is no table counts as one input. None: there is
            one table only, and if that cannot be read at all nothing can be done.
        form: Of the model.
    """

    count = None

    def __init__(self, folder: Path, listed: FolderListing | None, form: Form) -> None:
        self._folder, self._listed, self._form = folder, listed, form

    def _files(self) -> Iterator[tuple[str, Path]]:
        if self._listed is None:
            yield self._folder.name, self._folder
            return
        for name in self._listed.names(0):
            yield name, self._folder / name

    def pieces(self, start: int) -> Iterator[Rows]:
        """Yield rows of tables."""
        at = 0
        for name, path in self._files():
            try:
                for piece in chunks(path, shown(name), _ROWS):
                    count = len(piece) if isinstance(piece, Table) else 1
                    if isinstance(piece, Table) and at < start < at + count:
                        yield name, piece.rows(range(start - at, count))
                    elif at >= start:
                        yield name, piece
                    at += count
            except UserError as error:
                if self._listed is None:
                    raise
                if at >= start:
                    yield name, error
                at += 1

    def inputs(self, piece: Rows) -> NamedInputs:
        """Return the rows of a piece; cells that hold no number make a row unreadable."""
        name, found = text_of(piece[0]), piece[1]
        empty = np.zeros((0, *self._form.input_shape), self._form.dtype)
        if isinstance(found, UserError):
            return NamedInputs([name], [shown(found)], empty)
        if isinstance(found, TableFault):
            return NamedInputs([f"{name}:{found.line}"], [found.reason], empty)
        names = [f"{name}:{line}" for line in found.lines]
        try:
            return NamedInputs(names, [""] * len(names), encoded(found, self._form)[0])
        except UserError:
            return self._one_by_one(found, names, empty)

    def _one_by_one(self, table: Table, names: list[str], empty: NDArray[Any]) -> NamedInputs:
        reasons, rows = [], [empty]
        for at in range(len(table)):
            try:
                rows.append(encoded(table.rows([at]), self._form)[0])
                reasons.append("")
            except UserError as error:
                if self._lacks_columns(table):
                    raise
                reasons.append(shown(error))
        return NamedInputs(names, reasons, np.concatenate(rows))

    def _lacks_columns(self, table: Table) -> bool:
        """Say whether the only table there is lacks columns, so that no row can be answered."""
        known = {*table.cells, *table.unread}
        return self._listed is None and not {c.name for c in self._form.columns} <= known

    def weight(self, piece: Rows) -> int:
        """Return the weight of some rows, roughly."""
        table = piece[1]
        return 64 * len(table) * len(table.cells) if isinstance(table, Table) else 1


def is_archive(name: str) -> bool:
    """Say whether a file's name is that of an archive."""
    return name.lower().endswith(
        (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
    )


def source_of(path: Path, listed: FolderListing | None, form: Form) -> InputSource:
    """Return the inputs at a path.

    Args:
        path: A folder, or an archive of images, or a table.
        listed: What is below it, if it is a folder.
        form: Of the model.

    Raises:
        UserError: If the model does not take what is there.
    """
    said = shown(path)
    if form.kind == "rows":
        if listed is None and not is_table(path.name):
            raise UserError(
                f"{said}: the model takes rows; allowed: a folder of tables, or a table "
                f"({', '.join(ENDINGS)})"
            )
        return TableRows(path, listed, form)
    if listed is not None:
        return FolderOfImages(path, listed, form)
    if is_archive(path.name):
        return ArchiveOfImages(path, form)
    kind = "a table, but the" if is_table(path.name) else "no folder and no archive; the"
    raise UserError(
        f"{said}: {kind} model takes images; allowed: a folder, or an archive (.tar, .tar.gz, "
        ".tar.bz2, .tar.xz, .zip); `prong predict` answers a single image"
    )


def identity(path: Path) -> str:
    """Return the hash of what tells a file from one that was written later."""
    found = path.stat()
    return hashlib.sha256(f"{found.st_size}:{found.st_mtime_ns}".encode()).hexdigest()

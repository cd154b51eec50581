"""A CSV of paths and labels, and optionally splits, beside the images that it lists."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.core.errors import UserError
from pipelines.core.text import shown
from pipelines.data.class_folders import SPLIT_OF, UNPRINTABLE
from pipelines.data.images import EXTENSIONS, MAX_BYTES
from pipelines.data.schema import listed

_PATH = ("path", "file", "filename", "file_name", "filepath", "image")
_LABEL = ("label", "class", "target")
TABLES = (".csv", ".tsv")
"""How the name of such a file ends, in lower case."""
_DELIMITERS = ",;\t|"
_NAMED = 20
"""Most rows that one message names."""


@dataclass(frozen=True)
class Labels:
    """The images that a CSV lists.

    Attributes:
        paths: Relative to the CSV's folder, each once, in the order of the file.
        classes: The label of each, in Unicode's composed form (NFC).
        splits: `train`, `validation`, `test`, or None where the CSV says nothing.
        notes: What a user should know of how it was read.
    """

    paths: tuple[str, ...]
    classes: tuple[str, ...]
    splits: tuple[str | None, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str
    split: str


def find(folder: Path, names: Sequence[str], where: str) -> Path | None:
    """Return the CSV in a folder that gives its images' labels: one with columns path and label.

    Args:
        folder: The folder.
        names: Files below it.
        where: The folder, for messages.

    Raises:
        UserError: If there are several, or one cannot be read.
    """
    tables = [name for name in names if "/" not in name and name.lower().endswith(TABLES)]
    found = [name for name in tables if not name.startswith(".") and _gives_labels(folder / name)]
    if len(found) > 1:
        raise UserError(
            f"data.path = {where!r}: {listed(found, 'CSV', 'CSVs')} with path and label; needed: "
            "one, or the name of one as data.path"
        )
    return folder / found[0] if found else None


def parse(path: Path, where: str) -> Labels:
    """Read and check a CSV; all that is wrong with its rows is named in one message.

    The columns are those that the header calls path (or file, filename, image), label (or class,
    target) and split. Without such names the first is the path and the second the label. The
    delimiter is a comma, semicolon, tab or bar, whichever the first line has most of. Paths are
    relative to the CSV's folder, with `/`.

    Raises:
        UserError: If the file is no CSV in UTF-8; if a row lacks a path or label or names an
            unknown split; if a path leads out of the folder or to no file; if a path has two labels
            or splits.
    """
    said = f"data.path = {where!r}: {path.name}"
    rows = list(_rows(_text(path), said))
    if not rows:
        raise UserError(f"{said}: no rows; needed: path,label")
    root = path.parent.resolve()
    bad: list[str] = []
    known: dict[str, _Row] = {}
    repeated = 0
    for row in rows:
        name, wrong = _check(row, path.parent, root)
        earlier = known.get(name)
        if wrong:
            bad.append(f"line {row.line}: {wrong}")
        elif earlier is None:
            known[name] = row
        elif (earlier.label, earlier.split) != (row.label, row.split):
            bad.append(
                f"line {row.line}: {name} is {_meaning(row)}, but {_meaning(earlier)} in line "
                f"{earlier.line}"
            )
        else:
            repeated += 1
    if bad:
        more = [f"and {len(bad) - _NAMED} more"] if len(bad) > _NAMED else []
        if len(bad) == 1:
            raise UserError(f"{said}: {bad[0]}")
        raise UserError("\n  ".join([f"{said}: {len(bad)} rows are wrong:", *bad[:_NAMED], *more]))
    notes = (f"{repeated} rows of {path.name} repeat an earlier one",) if repeated else ()
    return Labels(
        paths=tuple(known),
        classes=tuple(row.label for row in known.values()),
        splits=tuple(SPLIT_OF.get(row.split) for row in known.values()),
        notes=notes,
    )


def _meaning(row: _Row) -> str:
    return f"{row.label} in {row.split}" if row.split else row.label


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not in UTF-8 (byte {error.start}); save it as UTF-8") from None


def _gives_labels(path: Path) -> bool:
    """Return whether the first line of a CSV names columns `path` and `label`."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = start.decode(encoding, errors="replace").splitlines()
    header = _header(lines[0]) if lines else []
    return "path" in header and "label" in header


def _delimiter(line: str) -> str:
    """Return the delimiter that a line has most of, outside of quotes; a comma if none."""
    bare = "".join(line.split('"')[::2])
    return max(_DELIMITERS, key=bare.count)


def _header(line: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=_delimiter(line)), [])
    except csv.Error:
        return []
    return [cell.strip().lower() for cell in row]


def _rows(text: str, said: str) -> Iterator[_Row]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    header = _header(first)
    path, label = (
        next((header.index(name) for name in names if name in header), None)
        for names in (_PATH, _LABEL)
    )
    if (path is None) != (label is None):
        raise UserError(
            f"{said}: the header {first[:200]!r} names only one of the columns path and label"
        )
    named = path is not None
    # A first line that names neither columns nor an image is a header in other words.
    skip = named or PurePosixPath(header[0] if header else "").suffix not in EXTENSIONS
    split = header.index("split") if skip and "split" in header else None
    at = (path or 0, label if named and label is not None else 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(first), strict=True)
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if skip:
                skip = False
                continue
            values = [cell.strip() for cell in cells]
            values += [""] * (1 + max(*at, split or 0) - len(values))
            yield _Row(
                line=reader.line_num,
                path=values[at[0]],
                label=unicodedata.normalize("NFC", values[at[1]]),
                split="" if split is None else values[split].lower(),
            )
    except csv.Error as error:
        raise UserError(f"{said}: line {reader.line_num}: not a CSV: {error}") from None


def _check(row: _Row, folder: Path, root: Path) -> tuple[str, str]:
    """Return a row's path in one spelling and what is wrong with the row, or nothing."""
    if not row.path:
        return "", "no path"
    if not row.label:
        return "", f"{shown(row.path)} has no label"
    if UNPRINTABLE.search(row.path) or UNPRINTABLE.search(row.label):
        return "", f"not printable: {row.path!a}, {row.label!a}"
    if row.split and row.split not in SPLIT_OF:
        return "", f"split {row.split!r} is unknown; allowed: train, val, test, or nothing"
    try:
        name = row.path
        if "\\" in name and not (folder / name).exists():
            name = name.replace("\\", "/")  # as programs on Windows write it
        path = PurePosixPath(name)
        real = (folder / path).resolve()
        if path.is_absolute() or not real.is_relative_to(root):
            return "", f"{shown(row.path)} leads out of the CSV's folder"
        if not real.is_file():
            return "", f"{shown(row.path)} is no file"
    except (OSError, RuntimeError):  # a name that is too long, or links in a circle
        return "", f"{shown(row.path)} is no file"
    return real.relative_to(root).as_posix() if ".." in path.parts else path.as_posix(), ""

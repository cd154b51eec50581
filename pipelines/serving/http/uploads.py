"""Image files and tables that are sent as they are, read by the parsers that training used."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, parse_options_header

from pipelines.core.errors import UserError
from pipelines.core.text import shown
from pipelines.data import table_file
from pipelines.data.images import decode
from pipelines.data.read_rows import encoded
from pipelines.data.table_file import Table
from pipelines.serving.http.refusal import Refused, bad, large, unfit
from pipelines.tasks.form import Form

MOST_FILES = 256
"""Files in one form."""
MOST_CELLS = 2**22
"""Cells that a Parquet file may say it has, and bytes of its columns times eight."""
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # broken forms are clients' matter
_FORM = b"multipart/form-data"
_CSV = (b"text/csv", b"text/tab-separated-values", b"application/csv", b"application/vnd.ms-excel")
_PARQUET = (b"application/vnd.apache.parquet", b"application/x-parquet", b"application/parquet")
_LINES = (b"application/x-ndjson", b"application/jsonl", b"application/json-lines")
_Cell = str | int | float | bool | None
_ROWS = TypeAdapter(
    Annotated[list[dict[str, _Cell]], Field(min_length=1)], config=ConfigDict(strict=True)
)
_NEEDED = "a CSV, Parquet, or JSON: a list of objects, such as [{'age': 3}]"


@dataclass(frozen=True)
class Upload:
    """One file of a request.

    Attributes:
        name: As the client calls it; safe to print.
        content: Its bytes.
        kind: Its media type, in lower case; empty if none is said.
    """

    name: str
    content: bytes
    kind: bytes


def uploads(body: bytes, content_type: bytes) -> list[Upload]:
    """Return the files in the body of a request: the body itself, or those of a form.

    Args:
        body: Of the request.
        content_type: Its header.

    Raises:
        Refused: If it is a broken form, or holds no file or too many.
    """
    try:
        kind, options = parse_options_header(content_type)
    except (ValueError, IndexError):
        raise bad("Content-Type cannot be read") from None
    if kind != _FORM:
        if not body:
            raise bad("the body is empty; needed: a file")
        return [Upload("body", body, kind)]
    found: list[Upload] = []

    def take(file: File) -> None:
        if len(found) == MOST_FILES:
            raise FormParserError(f"more than {MOST_FILES} files")
        name = shown((file.file_name or b"").decode("utf-8", "replace"))[:256]
        held = file.file_object
        held.seek(0)
        said = (file.content_type or "").split(";")[0].strip().lower()
        found.append(Upload(name or f"file {len(found) + 1}", held.read(), said.encode("latin-1")))

    edge = options.get(b"boundary", b"")
    if not body.rstrip().endswith(b"--" + edge + b"--"):
        raise bad("the form is not whole: its last boundary is absent")
    limits = {"MAX_MEMORY_FILE_SIZE": math.inf, "MAX_FIELD_SIZE": 2**16, "MAX_FIELDS": 64}
    try:
        parser = FormParser(_FORM.decode(), lambda _: None, take, boundary=edge, config=limits)
        parser.write(body)
        parser.finalize()
        parser.close()
    except (FormParserError, ValueError, LookupError, TypeError) as error:
        raise bad(f"the form cannot be read: {error}") from None
    if not found:
        raise bad("the form holds no whole file (a part with a filename)")
    return found


def examples(files: Sequence[Upload], form: Form, most: int) -> tuple[list[str], NDArray[Any]]:
    """Return the examples in files, as the data hold them.

    Args:
        files: Images, or tables; as the model takes them.
        form: Of the model.
        most: Examples that one request may bring.

    Returns:
        A name for each, and inputs [n, *input_shape].

    Raises:
        Refused: Naming what cannot be read.
    """
    try:
        if form.kind == "images":
            if len(files) > most:
                raise large(f"{len(files)} images; allowed in one request: {most}")
            images = [
                decode(
                    file.content,
                    size=form.size,
                    channels=form.channels,
                    bits=form.bits,
                    name=file.name,
                )
                for file in files
            ]
            return [file.name for file in files], np.stack(images)
        names: list[str] = []
        parts = []
        for file in files:
            rows, called = encoded(_table(file), form)
            names += called
            parts.append(rows)
            if len(names) > most:
                raise large(f"more than {most} rows, the most in one request")
        return names, np.concatenate(parts)
    except UserError as error:
        raise unfit(str(error)) from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise unfit(f"the file cannot be read: {error}") from None


def _table(file: Upload) -> Table:
    kind, name, content = file.kind, file.name.lower(), file.content
    if kind in _PARQUET or name.endswith(table_file.PARQUET):
        return table_file.from_parquet(content, file.name, MOST_CELLS)
    if kind in _LINES or name.endswith(table_file.LINES):
        return table_file.from_lines(content, file.name)
    if kind == b"application/json" or name.endswith(".json"):
        return table_file.from_records(_records(content), file.name)
    if kind in _CSV or name.endswith(table_file.DELIMITED):
        return table_file.from_bytes(content, file.name)
    raise unsupported(f"{file.name}: the model takes a table; needed: {_NEEDED}")


def _records(content: bytes) -> list[dict[str, Any]]:
    try:
        return _ROWS.validate_json(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, found["loc"][:2]))
        raise unfit(f"{where}: {found['msg']}; needed: {_NEEDED}".removeprefix(": ")) from None


def unsupported(reason: str) -> Refused:
    """Return a refusal of a media type: 415."""
    return Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, reason)

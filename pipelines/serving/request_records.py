"""Reading the request log, line by line: what does not fit is counted, and never obeyed.

Whoever may send requests has a part in what the log says, and a disk may damage it. So each line
passes one strict parser, is bounded in size, and one bad line costs one line.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.core.config import LONGEST_NAME, MODEL_NAME
from pipelines.core.text import shown
from pipelines.serving.request_log import (
    ENDING,
    MOST_EXAMPLES,
    MOST_NUMBERS,
    LoggedRequest,
    Shadow,
    written_time,
)
from pipelines.systems.locks import let_go, take

LONGEST_LINE = 2**20
"""Bytes of a line; the log writes no longer ones."""
_REASONS = 5  # shown of all refused lines
_NAME = re.compile(r"(?P<writer>\d{8}T\d{12}-[0-9a-f]{8})-(?P<number>\d{6})" + re.escape(ENDING))
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
_Number = Annotated[int, Field(ge=1, lt=10**9)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Value = float | None  # None: it was not finite
_Row = Annotated[list[_Value], Field(max_length=MOST_NUMBERS)]


class _Shadow(BaseModel):
    model_config = _STRICT

    version: _Number
    agree: _Share


class _Line(BaseModel):
    """One line of the log."""

    model_config = _STRICT

    time: AwareDatetime
    request: Annotated[str, Field(max_length=128)]
    model: Annotated[str, Field(pattern=MODEL_NAME, max_length=LONGEST_NAME)]
    version: _Number
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    examples: _Number
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    answers: Annotated[list[_Row], Field(max_length=MOST_EXAMPLES)]
    labels: Annotated[
        list[Annotated[int, Field(ge=0, lt=10**9)]], Field(max_length=MOST_EXAMPLES)
    ] = []
    drift: Annotated[list[_Value], Field(max_length=MOST_EXAMPLES)] = []
    inputs: Annotated[str, Field(pattern=r"^([0-9A-Za-z.-]{1,80}/[0-9]{1,12}\.npz)?$")] = ""
    shadow: _Shadow | None = None

    @model_validator(mode="after")
    def _of_as_many_examples(self) -> Self:
        kept = min(self.examples, MOST_EXAMPLES)
        for name in ("answers", "labels", "drift"):
            if len(getattr(self, name)) not in (0, kept):
                raise ValueError(f"{name}: of another number of examples than {kept}")
        if len({len(row) for row in self.answers}) > 1:
            raise ValueError("answers: of different lengths")
        return self


@dataclass(frozen=True)
class Mark:
    """How far a file of the log was read.

    Attributes:
        offset: Bytes read.
        ended: Whether nothing can be added to it any more.
    """

    offset: int
    ended: bool


class LogReader:
    """Iterates over the records of a log that are new since an earlier look.

    Attributes:
        position: File → how far it was read; to be handed to a later look, which then reads no
            record twice and leaves none out.
        read: Records given.
        refused: Lines that are no records.
        torn: Incomplete last lines of servers that ended.
        missed: Files that were removed, because the log was full, before they were read to their
            end.
        reasons: Why the first of the refused lines were.
    """

    def __init__(self, folder: Path, since: Mapping[str, Mark] | None = None) -> None:
        """Read nothing yet.

        Args:
            folder: Of the log; it may be absent.
            since: The position that an earlier look ended with; None: from the beginning.
        """
        self._folder, self._since = folder, since
        self.position: dict[str, Mark] = dict(since or {})
        self.read = self.refused = self.torn = self.missed = 0
        self.reasons: list[str] = []

    def __iter__(self) -> Iterator[LoggedRequest]:
        """Yield the records, file by file, each in the order in which it was written."""
        names = sorted(self._names())
        self.missed += self._count_missed(names)
        for name in names:
            mark = self.position.get(name, Mark(0, ended=False))
            if not mark.ended:
                yield from self._records(name, mark.offset)
        self._forget(names)

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._folder) if _NAME.fullmatch(name)]
        except FileNotFoundError:
            return []

    def _count_missed(self, names: list[str]) -> int:
        """Count the files that went before they were read; at a first look none is missed."""
        if self._since is None:
            return 0
        gone = [name for name, mark in self._since.items() if name not in names and not mark.ended]
        last = _last_numbers(self._since)
        first: dict[str, int] = {}
        for name in names:
            writer, number = _parts(name)
            if number > last.get(writer, 0):
                first[writer] = min(number, first.get(writer, number))
        return len(gone) + sum(number - 1 - last.get(who, 0) for who, number in first.items())

    def _forget(self, names: list[str]) -> None:
        """Forget files that are gone, but not where a server that has others had come to."""
        there = {_parts(name)[0] for name in names}
        last = _last_numbers(self.position)
        for name in set(self.position) - set(names):
            writer, number = _parts(name)
            if writer not in there or number < last[writer]:
                del self.position[name]
            else:
                self.position[name] = Mark(self.position[name].offset, ended=True)

    def _records(self, name: str, offset: int) -> Iterator[LoggedRequest]:
        descriptor = self._opened(name)
        if descriptor is None:
            return
        with open(descriptor, "rb") as file:
            # Asked first: what a server that lives adds meanwhile is left to the next look.
            ended = take(file)
            if ended:
                let_go(file)
            file.seek(offset)
            yield from self._lines(name, file, offset)
            offset = self.position.get(name, Mark(offset, ended=False)).offset
            rest = os.fstat(descriptor).st_size - offset
            if ended and rest > 0:
                self.torn += 1
                offset += rest
            self.position[name] = Mark(offset, ended)

    def _opened(self, name: str) -> int | None:
        """Open a file; a link, a pipe or a folder in its place is refused."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._folder / name, flags)
        except OSError as error:
            self._refuse(f"{name}: {error.strerror}")
            return None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        self._refuse(f"{name}: not a file")
        return None

    def _lines(self, name: str, file: BinaryIO, offset: int) -> Iterator[LoggedRequest]:
        while line := file.readline(LONGEST_LINE + 1):
            start, size, too_long = offset, len(line), len(line) > LONGEST_LINE
            while not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
                if not line:
                    return  # incomplete
                size += len(line)
            offset += size
            self.position[name] = Mark(offset, ended=False)
            if too_long:
                self._refuse(f"{name}, byte {start}: longer than {LONGEST_LINE} bytes")
                continue
            record = self._parsed(f"{name}, byte {start}", line)
            if record is not None:
                self.read += 1
                yield record

    def _parsed(self, where: str, line: bytes) -> LoggedRequest | None:
        try:
            found = _Line.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            at = ".".join(str(part) for part in first["loc"])
            self._refuse(f"{where}: {at + ': ' if at else ''}{first['msg']}")
            return None
        shadow = Shadow(found.shadow.version, found.shadow.agree) if found.shadow else None
        return LoggedRequest(
            time=written_time(found.time),
            request=found.request,
            model=found.model,
            version=found.version,
            sha256=found.sha256,
            examples=found.examples,
            seconds=found.seconds,
            answers=[_finite(row) for row in found.answers],
            labels=found.labels,
            drift=_finite(found.drift),
            inputs=found.inputs,
            shadow=shadow,
        )

    def _refuse(self, why: str) -> None:
        self.refused += 1
        if len(self.reasons) < _REASONS:
            self.reasons.append(shown(why)[:300])


def read_log(folder: Path, since: Mapping[str, Mark] | None = None) -> LogReader:
    """Return an iterator over the records of a log, which counts what it had to refuse.

    Numbers that were not finite are read as infinity: in a comparison of ranks they are the
    furthest ones.

    Args:
        folder: Of the log (`log_folder`); an absent one has no records.
        since: The `position` of an earlier look; None: from the beginning.
    """
    return LogReader(folder, since)


def _finite(row: list[_Value]) -> list[float]:
    return [float("inf") if value is None else value for value in row]


def _parts(name: str) -> tuple[str, int]:
    """Return which server wrote a file, and which of its files it is."""
    found = _NAME.fullmatch(name)
    return (found["writer"], int(found["number"])) if found else (name, 0)


def _last_numbers(names: Mapping[str, Mark]) -> dict[str, int]:
    last: dict[str, int] = {}
    for name in names:
        writer, number = _parts(name)
        last[writer] = max(number, last.get(writer, 0))
    return last

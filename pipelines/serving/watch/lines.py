"""What the watching process tells the server: one line of JSON for each look at the registry.

The line holds signed texts as the registry has them. The server checks them itself, and finds the
file by the hash that they name: no path comes over this line.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from pipelines.registry.outside import LONGEST, Number, Sha256

LONGEST_LINE = 128 * 2**10
"""Bytes."""
_MOST_PROBLEMS, _LONGEST_PROBLEM = 20, 1500
_Signed = Annotated[str, Field(max_length=LONGEST)]
_Said = Annotated[str, Field(max_length=_LONGEST_PROBLEM)]


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Challenger:
    """A version that nobody released: only the shadow may ask it.

    Attributes:
        version: Its number.
        sha256: Of its file as it was registered; the file lies in the cache.
    """

    version: Number
    sha256: Sha256


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class RegistryLook:
    """What one look at the registry found.

    Attributes:
        problems: What is wrong with the registry; empty if all is well.
        last: The newest entry of the history; empty where nothing can be answered from.
        entry: The entry by which its version came live.
        statement: By which it was released. Its file lies in the cache.
        challenger: The version that the shadow is to ask, or None.
    """

    problems: Annotated[tuple[_Said, ...], Field(max_length=_MOST_PROBLEMS)]
    last: _Signed = ""
    entry: _Signed = ""
    statement: _Signed = ""
    challenger: Challenger | None = None

    def line(self) -> bytes:
        """Return it as one line."""
        return _ADAPTER.dump_json(self) + b"\n"


_ADAPTER = TypeAdapter(RegistryLook)


def shortened(problems: tuple[str, ...]) -> tuple[str, ...]:
    """Return problems as a line can hold them: the first ones, cut."""
    return tuple(text[:_LONGEST_PROBLEM] for text in problems[:_MOST_PROBLEMS])


def parsed(line: bytes) -> RegistryLook | None:
    """Return what a line tells; None if it tells nothing that fits."""
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError:
        return None

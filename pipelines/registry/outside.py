"""The one boundary for what comes out of the registry: types that a tag, alias or name must fit.

Whoever may write to MLflow may write anything. What does not fit is a finding for whoever asked,
never a traceback, never part of a path, and never obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, Field(ge=1, lt=10**9)]
"""Of a version or an entry."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=250)]
Text = Annotated[str, Field(max_length=1000)]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT[0-9:.]{5,15}(Z|[+-]\d\d:\d\d)$")]
Id = Annotated[str, Field(pattern=r"^[0-9A-Za-z-]{1,64}$")]
Signature = Annotated[str, Field(pattern=r"^[0-9A-Za-z+/=]{0,400}$")]
LONGEST = 5000
"""Characters of a tag: the least that MLflow's stores take; no tag of ours is longer."""


def sha256(text: str | None) -> str:
    """Return a hash as it is, or nothing if it is none: it may become the name of a file."""
    return text if text is not None and re.fullmatch(r"[0-9a-f]{64}", text) else ""


def number(text: object) -> int | None:
    """Return a version's number, or None if it is none."""
    plain = str(text)
    good = len(plain) < 10 and plain.isascii() and plain.isdecimal() and int(plain) > 0
    return int(plain) if good else None


def aliases(found: Mapping[str, object]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return alias → version, and the aliases that name no version's number."""
    read = {str(alias): number(target) for alias, target in found.items()}
    wrong = tuple(sorted(alias for alias, target in read.items() if target is None))
    return {alias: target for alias, target in read.items() if target is not None}, wrong

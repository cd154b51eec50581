"""The identity of a process, by which others can tell later whether it still runs.

An identity comes back from a store that others write too. So it passes one strict parser: what
does not parse was left by nobody known, and nothing is concluded from it.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipelines.systems.processes import machine, process_start

HEARTBEAT = "prong.heartbeat"
"""Tag: when the run's process last said that it lives, seconds since 1970."""
STALE = 15 * 60
"""Seconds after which a process that cannot be looked at counts as gone."""
START: Final = "prong.process_start"
"""Tag: when the process began."""
LONGEST_LEASE = 24 * 3600.0
"""Seconds; what claims to last longer was not written by this program."""
_HOST: Final = "prong.host"
_PID: Final = "prong.pid"
_KERNEL: Final = "prong.kernel"
_LONGEST_TEXT = 10_000
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")

_Digits = StringConstraints(strict=True, pattern=r"^[0-9]{1,20}\z")


class Holder(BaseModel):
    """Who made an entry: a process of this program, somewhere.

    Attributes:
        host: The machine's name.
        pid: The process id there, digits.
        kernel: One boot of one machine and one process namespace; see `processes.machine`.
        start: When the process began, ticks since that boot; empty if it could not tell.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9._-]{1,255}\z")] = (
        Field(alias=_HOST)
    )
    pid: Annotated[str, _Digits] = Field(alias=_PID)
    kernel: Annotated[
        str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9:/\[\]_-]{1,200}\z")
    ] = Field(alias=_KERNEL)
    start: Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9]{0,20}\z")] = Field(
        alias=START
    )

    def __str__(self) -> str:
        """Return the process in words."""
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Number:
    """Bounds of a number that comes from outside.

    Attributes:
        least: The smallest that counts.
        most: The largest that counts.
    """

    least: float
    most: float

    def parse(self, value: Any) -> float | None:
        """Return a number, or a text that is one, if it lies within the bounds; else None."""
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return float(value) if self.least <= value <= self.most else None


DURATION = Number(0.0, LONGEST_LEASE)
"""Seconds that a lease lasts."""


def identity() -> dict[str, str]:
    """Return the tags by which this process can be looked for later."""
    return {
        _HOST: re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname())[:255] or "unknown",
        _PID: str(os.getpid()),
        _KERNEL: machine(),
        START: process_start(os.getpid()) or "",
        HEARTBEAT: f"{time.time():.0f}",
    }


def holder_of(said: object) -> Holder | None:
    """Return who made an entry, or None if that cannot be read.

    Args:
        said: Tags that `identity` returned, or their JSON, as a store gives them back.
    """
    if isinstance(said, str):
        try:
            said = json.loads(said) if len(said) <= _LONGEST_TEXT else None
        except (ValueError, RecursionError):
            return None
    if not isinstance(said, Mapping):
        return None
    try:
        return Holder.model_validate(dict(said))
    except ValidationError:
        return None


def described(said: object) -> str:
    """Return who made an entry in words, for messages."""
    return str(holder_of(said) or "an unknown process")


def gone(said: object) -> bool:
    """Say whether the process with this identity ran on this boot and is gone.

    False as well if it ran elsewhere, where it cannot be seen from here, and if the identity cannot
    be read.

    Args:
        said: Tags that `identity` returned, or their JSON.
    """
    holder = holder_of(said)
    if holder is None or holder.kernel != machine():
        return False
    return process_start(int(holder.pid)) != holder.start


def dead(tags: Mapping[str, str]) -> bool:
    """Say whether the process with this identity is gone, or has been silent for `STALE` seconds.

    A process that cannot be looked at, or read, counts by its heartbeat alone; one that cannot be
    read, or lies in the future, counts as none.

    Args:
        tags: What `identity` returned there, `HEARTBEAT` renewed since.
    """
    holder = holder_of(tags)
    if holder is not None and holder.kernel == machine():
        return gone(tags)
    # Another machine, container or boot: its process cannot be seen from here.
    now = time.time()
    return Number(now - STALE, now + STALE).parse(tags.get(HEARTBEAT)) is None

"""Named points at which a process can be killed, to test what a crash leaves behind.

`PRONG_FAULT=promote.champion` ends the process at this point by SIGKILL, as a power failure or the
kernel's out-of-memory killer would. With the suffix `:stop` the process sleeps there until SIGCONT;
with `:raise` it raises an unexpected error. `train.step@1` means only rank 1 of a training, and
`train.step#40` the fortieth time. Without the variable, a point costs one look-up.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter

from pipelines.core.errors import UserError

SETTING = "PRONG_FAULT"
POINTS = (
    "register.lease",
    "register.intent",
    "register.run",
    "register.begin",
    "register.upload",
    "register.download",
    "register.version",
    "register.complete",
    "register.challenger",
    "register.done",
    "promote.lease",
    "promote.judged",
    "promote.tags",
    "promote.statement",
    "promote.intent",
    "promote.previous",
    "promote.champion",
    "promote.challenger",
    "promote.history",
    "promote.done",
    "rollback.lease",
    "rollback.verified",
    "rollback.intent",
    "rollback.previous",
    "rollback.champion",
    "rollback.history",
    "rollback.done",
    "train.initialised",
    "train.refreshed",
    "train.step",
    "checkpoint.begun",
    "checkpoint.parts",
    "checkpoint.written",
    "checkpoint.renamed",
    "checkpoint.done",
    "train.finished",
    "train.saved",
)
"""Each point comes after the step in its name; `lease` and `done`: after acquire and release."""
HOW = ("", "stop", "raise")


_SETTING = re.compile(r"(?P<name>[a-z.]+)(@(?P<rank>\d+))?(#(?P<time>\d+))?(:(?P<how>\w+))?")
_passed: Counter[str] = Counter()


def point(name: str) -> None:
    """End this process by SIGKILL, or as the setting requests, if it names this point.

    Raises:
        UserError: If the setting names a point that does not exist.
        RuntimeError: If the setting requests it.
    """
    asked = os.environ.get(SETTING)
    if not asked:
        return
    found = _SETTING.fullmatch(asked)
    how = found["how"] or "" if found else ""
    if found is None or found["name"] not in POINTS or how not in HOW:
        raise UserError(
            f"{SETTING} = {asked!r}: no such point; allowed, each with or without @RANK, #TIME and "
            f":stop or :raise after it: {', '.join(POINTS)}"
        )
    if found["name"] != name or found["rank"] not in (None, os.environ.get("RANK")):
        return
    _passed[name] += 1
    if _passed[name] != int(found["time"] or 1):
        return
    if how == "raise":
        raise RuntimeError(f"{SETTING} = {asked!r}")
    os.kill(os.getpid(), signal.SIGSTOP if how else signal.SIGKILL)

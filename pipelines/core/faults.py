"""Named points at which a process can be made to die, so that what a crash leaves can be tested.

`PRONG_FAULT=promote.champion` makes the process that gets there end by SIGKILL, as a power cut or
the kernel's memory killer would end it; `:stop` behind it makes it sleep there until SIGCONT,
`:raise` fail with an error of no known kind. `train.step@1` means rank 1 of a training alone, and
`train.step#40` the fortieth time. Without the variable a point is one look-up.
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
"""Each lies behind the step it is named after; `lease` and `done` behind taking and giving back."""
HOW = ("", "stop", "raise")


_SETTING = re.compile(r"(?P<name>[a-z.]+)(@(?P<rank>\d+))?(#(?P<time>\d+))?(:(?P<how>\w+))?")
_passed: Counter[str] = Counter()


def point(name: str) -> None:
    """End this process by SIGKILL, or as the setting says, if the setting names this point.

    Raises:
        UserError: If the setting names a point that does not exist.
        RuntimeError: If the setting says so.
    """
    asked = os.environ.get(SETTING)
    if not asked:
        return
    found = _SETTING.fullmatch(asked)
    how = found["how"] or "" if found else ""
    if found is None or found["name"] not in POINTS or how not in HOW:
        raise UserError(
            f"{SETTING} = {asked!r}: no such point; allowed, each with or without @RANK, #TIME and "
            f":stop or :raise behind: {', '.join(POINTS)}"
        )
    if found["name"] != name or found["rank"] not in (None, os.environ.get("RANK")):
        return
    _passed[name] += 1
    if _passed[name] != int(found["time"] or 1):
        return
    if how == "raise":
        raise RuntimeError(f"{SETTING} = {asked!r}")
    os.kill(os.getpid(), signal.SIGSTOP if how else signal.SIGKILL)

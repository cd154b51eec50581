"""Named points at which a process can be made to die, so that what a crash leaves can be tested.

`PRONG_FAULT=promote.champion` makes the process that gets there end by SIGKILL, as a power cut or
the kernel's memory killer would end it; `PRONG_FAULT=promote.champion:stop` makes it sleep there
until SIGCONT. Without the variable a point is one look-up.
"""

from __future__ import annotations

import os
import signal

from pipelines.errors import UserError

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
)
"""Each lies behind the step it is named after; `lease` and `done` behind taking and giving back."""


def point(name: str) -> None:
    """End this process by SIGKILL if the setting names this point; `NAME:stop` puts it to sleep.

    Raises:
        UserError: If the setting names a point that does not exist.
    """
    asked = os.environ.get(SETTING)
    if not asked:
        return
    wanted, _, how = asked.partition(":")
    if wanted not in POINTS or how not in ("", "stop"):
        raise UserError(
            f"{SETTING} = {asked!r}: no such point; allowed, with or without `:stop` behind: "
            f"{', '.join(POINTS)}"
        )
    if wanted == name:
        os.kill(os.getpid(), signal.SIGSTOP if how else signal.SIGKILL)

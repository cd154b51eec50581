"""Times and names of a schedule, checked before a server sees them."""

from __future__ import annotations

import difflib
import re
import zoneinfo

from pipelines.core.errors import UserError
from pipelines.systems.prefect.schedules import CronSchedule, cron_schedule, fires

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FORM = (
    "five fields: minute (0-59), hour (0-23), day (1-31), month (1-12 or jan-dec), weekday "
    "(0-7 or sun-sat); each *, a number, a range 1-5, a list 1,3 or a step */10"
)


def schedule(cron: str, timezone: str) -> CronSchedule:
    """Return the schedule of a cron expression in a time zone.

    Args:
        cron: Such as `0 3 * * *`: every night at three.
        timezone: An IANA name, such as `Europe/Paris`.

    Raises:
        UserError: If either is wrong, or the expression never fires.
    """
    known = zoneinfo.available_timezones()
    if timezone not in known:
        near = difflib.get_close_matches(timezone, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"--timezone {timezone!r}: unknown; {hint}allowed: IANA names such as UTC, Europe/Paris"
        )
    wrong = UserError(f"--cron {cron!r}: not a cron expression; allowed: {_FORM}")
    if len(cron.split()) != 5 or not cron.isascii():
        raise wrong
    try:
        found = cron_schedule(" ".join(cron.split()), timezone)
    except ValueError:
        raise wrong from None
    if not fires(found):
        raise UserError(f"--cron {cron!r}: never fires; allowed: a day that one of its months has")
    return found


def check_name(option: str, name: str) -> str:
    """Return a name that server, files and addresses take.

    Raises:
        UserError: If it is another.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{option} {name!r}: allowed: up to 100 letters, digits, '.', '_' and '-', "
            "a letter or digit first"
        )
    return name

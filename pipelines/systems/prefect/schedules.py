"""Cron schedules, as client and server understand them."""

from __future__ import annotations

import asyncio
from datetime import datetime

from prefect.client.schemas.schedules import CronSchedule
from prefect.server.schemas.schedules import CronSchedule as ServerSchedule
from pydantic import ValidationError

__all__ = ["CronSchedule", "cron_schedule", "fires", "next_fire"]


def cron_schedule(cron: str, timezone: str) -> CronSchedule:
    """Return the schedule of a cron expression in a time zone.

    Raises:
        ValueError: If it is no cron expression.
    """
    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except (ValidationError, ValueError, LookupError, ArithmeticError) as error:
        raise ValueError(f"not a cron expression: {cron!r}") from error


def next_fire(schedule: CronSchedule) -> datetime | None:
    """Return the next time of a schedule; None if it has none: the 30th of February."""
    server_side = ServerSchedule(cron=schedule.cron, timezone=schedule.timezone)
    try:
        times = asyncio.run(server_side.get_dates(1))
    except ValueError:  # croniter's way to say that it looked far ahead in vain
        return None
    return times[0] if times else None


def fires(schedule: CronSchedule) -> bool:
    """Say whether a schedule has a next time at all: the 30th of February has none."""
    return next_fire(schedule) is not None

"""The command `prong monitor`.

Heavy imports are inside it, so that help and usage errors appear at once.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.shared_arguments import AsJson, Name
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.core.text import shown

if TYPE_CHECKING:
    from pipelines.monitoring.look import Settings
    from pipelines.monitoring.monitor import Monitored

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def monitor(
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Look back: 90m, 24h, 7d, or a time of ISO 8601. Default: since the last look.",
        ),
    ] = "",
    rate: Annotated[float, typer.Option(help="False alarms per look on unchanged inputs.")] = 0.01,
    minimum: Annotated[int, typer.Option(help="Examples that a decision needs.")] = 100,
    retrain: Annotated[
        bool, typer.Option(help="Train on drift, if labelled data has changed.")
    ] = True,
    cron: Annotated[
        str | None,
        typer.Option(metavar="'M H D M W'", help="Look at these times instead: five cron fields."),
    ] = None,
    deployment: Annotated[str, typer.Option(help="Name of the deployment of --cron.")] = "monitor",
    pool: Annotated[str, typer.Option(help="Work pool of --cron.")] = "prong",
    timezone: Annotated[str, typer.Option(help="IANA time zone of --cron.")] = "UTC",
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """Look for drift in the request log: exit code 0 without, 1 with drift; write a report."""
    from pipelines.core.environment import open_checkout
    from pipelines.monitoring.by_hand import look_by_hand
    from pipelines.monitoring.look import Settings
    from pipelines.monitoring.monitor import checked

    settings = checked(Settings(rate, minimum, _time(since) if since else None))
    layout, params = open_checkout()
    if cron is not None:
        if since or as_json or name not in (None, params.model_name):
            raise UserError("--cron: allowed beside --rate, --minimum, --no-retrain, --deployment, "
                            "--pool and --timezone")  # fmt: skip
        _schedule(layout, settings, cron, timezone, deployment, pool, retrain=retrain)
        return
    done = look_by_hand(layout, params, name or params.model_name, settings, retrain=retrain)
    _show(layout, done, as_json)
    if done.look.drift:
        raise typer.Exit(1)


def _time(text: str) -> datetime:
    """Return a time that was typed: a span before now, or ISO 8601, else in this machine's zone.

    Raises:
        UserError: If it is neither.
    """
    found = re.fullmatch(r"([0-9]{1,5})([mhd])", text, re.ASCII)
    try:
        if found:
            return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UserError(
            f"--since {text[:100]!r}: allowed: 90m, 24h, 7d, or a time such as 2026-03-01T08:00"
        ) from None


def _schedule(
    layout: Layout,
    settings: Settings,
    cron: str,
    timezone: str,
    deployment: str,
    pool: str,
    *,
    retrain: bool,
) -> None:
    from pipelines.systems.prefect.server import prefect_api

    with prefect_api(layout) as wait:
        from pipelines.monitoring.scheduled_look import deployed
        from pipelines.scheduling.cron import schedule
        from pipelines.scheduling.deployment import deploy

        times = schedule(cron, timezone)
        wait()
        what = deployed(settings, retraining=retrain)
        plan, changed = deploy(layout, deployment, times, pool, what)
    news = "scheduled" if changed else "unchanged"
    print(shown(f"{plan.name}  {plan.cron}  {plan.timezone}  pool {plan.pool}  {news}"))
    print("see also  prong worker (executes the looks) · prong schedule --list · prong ui")


def _show(layout: Layout, done: Monitored, as_json: bool) -> None:
    from pipelines.monitoring.look_report import as_json as plain

    look = done.look
    if as_json:
        found = {**plain(look), "report": str(done.page), "alerted": done.alerted}
        print(json.dumps(found, indent=2, sort_keys=True))
        return
    lost = f", {look.refused} lines refused" if look.refused else ""
    lost += f", {look.torn} torn" if look.torn else ""
    lost += f", {look.missed} files gone unread" if look.missed else ""
    print(f"requests    {look.read} new{lost}")
    for one in look.versions:
        live = " (live)" if one.live else ""
        said = f"v{one.version}{live} {one.decision}: {one.reason}"
        print(shown(f"{look.model}  {said}"))
    if look.drift:
        print(shown(f"training    {look.retraining}"))
    page = (
        done.page.relative_to(layout.root) if done.page.is_relative_to(layout.root) else done.page
    )
    print(shown(f"report      {page}"))

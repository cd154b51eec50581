"""The commands `prong schedule` and `prong worker`.

Heavy imports are inside them, so that help and usage errors appear at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.core.errors import UserError
from pipelines.core.text import shown


def schedule(
    cron: Annotated[
        str | None, typer.Option(metavar="'M H D M W'", help="When to run: five cron fields.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the deployment.")] = "retrain",
    pool: Annotated[str, typer.Option(help="Work pool; the default pool is created.")] = "prong",
    timezone: Annotated[str, typer.Option(help="IANA time zone of the cron.")] = "UTC",
    pause: Annotated[
        bool, typer.Option("--pause", help="Start no runs until it is scheduled again.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Delete the deployment.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the deployments.")] = False,
) -> None:
    """Schedule the main job as a Prefect deployment whose runs `prong worker` executes."""
    from pipelines.core.environment import open_checkout
    from pipelines.systems.prefect.server import prefect_api

    asked = {"--cron": cron is not None, "--pause": pause, "--remove": remove, "--list": show}
    given = [option for option, there in asked.items() if there]
    if len(given) != 1:
        raise UserError(f"{' '.join(given) or 'nothing given'}: give one of {', '.join(asked)}")
    layout, _ = open_checkout()
    with prefect_api(layout) as wait:
        from pipelines.scheduling import deployment
        from pipelines.scheduling.cron import schedule

        if cron is not None:
            times = schedule(cron, timezone)
            wait()
            plan, changed = deployment.deploy(layout, name, times, pool)
            news = "scheduled" if changed else "unchanged"
            said = f"{plan.name}  {plan.cron}  {plan.timezone}  pool {plan.pool}  {news}"
            print(shown(said))
            print("see also  prong worker (executes the runs) · prong schedule --list · prong ui")
            return
        wait()
        if pause:
            deployment.pause(name)
            print(f"{shown(name)}  paused; `prong schedule --cron …` starts it again")
        elif remove:
            deployment.remove(name)
            print(f"{shown(name)}  removed")
        else:
            for known, found in deployment.plans():
                said = "schedules not made by prong schedule: see prong ui"
                if found is not None:
                    state = "paused" if found.paused else "active"
                    said = f"{found.cron}  {found.timezone}  pool {found.pool}  {state}"
                print(shown(f"{known}  {said}"))


def worker(
    pool: Annotated[str, typer.Option(help="Work pool to take runs from.")] = "prong",
) -> None:
    """Execute scheduled runs until Ctrl-C; start a Prefect server if none is set."""
    from pipelines.core.environment import open_checkout
    from pipelines.scheduling.worker import serve

    layout, params = open_checkout()
    serve(layout, params, pool)

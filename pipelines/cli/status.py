"""`prong status`: in one screen what is live, whether it is healthy, and what runs next and ran."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Protocol

from rich.text import Text

from pipelines.core import tables
from pipelines.core.config import Params
from pipelines.core.errors import Unavailable
from pipelines.core.paths import Layout
from pipelines.core.tables import Styled
from pipelines.scheduling.overview import Overview
from pipelines.systems.prefect.server import prefect_api

_LABEL = 12


class SaidProblem(Protocol):
    """Something that is wrong: with what, what was found, and what to do about it."""

    @property
    def what(self) -> str:
        """With what."""

    @property
    def said(self) -> str:
        """What was found."""

    @property
    def way_on(self) -> str:
        """What to do about it."""


class LiveVersion(Protocol):
    """What is live, as the registry's history says."""

    @property
    def model(self) -> str:
        """The registered model's name."""

    @property
    def version(self) -> int | None:
        """The version that is live; None if none is."""

    @property
    def since(self) -> str | None:
        """Since when, ISO 8601."""

    @property
    def by(self) -> str:
        """Who made it live."""

    @property
    def reason(self) -> str:
        """Why."""

    @property
    def challenger(self) -> int | None:
        """The newest version that was judged and is not live, if there is one."""

    @property
    def challenger_reason(self) -> str:
        """Why it is not live."""

    @property
    def problems(self) -> Sequence[SaidProblem]:
        """What keeps the live version from being answered from."""


def show_status(layout: Layout, params: Params, model: str, as_json: bool) -> bool:
    """Print how a model and the runs of its checkout stand.

    Args:
        layout: The checkout; its environment is set.
        params: Its parameters.
        model: The registered model's name.
        as_json: Whether to print JSON instead of a screen.

    Returns:
        Whether the live version could be served and the record of runs answered.

    Raises:
        UserError: If the registry's address is wrong, or it has no model of another name.
        Unavailable: If the registry does not answer.
    """
    with prefect_api(layout) as wait:
        # The registry is read while the server comes up.
        from pipelines.registry.versions import require_model
        from pipelines.release.health import standing
        from pipelines.scheduling.overview import overview

        if model != params.model_name:
            require_model(layout, model)
        live = standing(layout, model)
        runs: Overview | str
        try:
            wait()
            runs = overview(layout)
        except Unavailable as error:
            runs = str(error)
    return render(live, runs, as_json=as_json)


def render(live: LiveVersion, runs: Overview | str, *, as_json: bool) -> bool:
    """Print what is known; return whether nothing is wrong.

    Args:
        live: What the registry says.
        runs: What Prefect says, or why it says nothing.
        as_json: Whether to print JSON instead of a screen.
    """
    healthy = not live.problems and not isinstance(runs, str)
    if as_json:
        print(json.dumps(_as_json(live, runs, healthy), indent=2, default=_iso))
        return healthy
    console = tables.console()
    for line in (*_live(live), *_problems(live, runs)):
        console.print(line, soft_wrap=True)
    if isinstance(runs, Overview):
        for line in _schedule(runs):
            console.print(line, soft_wrap=True)
        if runs.runs:
            console.print(_runs(runs))
        else:
            console.print(_labelled("last runs", "none yet"))
    return healthy


def _iso(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"not JSON: {type(value).__name__}")


def _as_json(live: LiveVersion, runs: Overview | str, healthy: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": live.model,
        "version": live.version,
        "since": live.since,
        "by": live.by,
        "reason": live.reason,
        "healthy": healthy,
        "problems": [
            {"what": one.what, "said": one.said, "way_on": one.way_on} for one in live.problems
        ],
        "challenger": live.challenger,
        "challenger_reason": live.challenger_reason,
    }
    if isinstance(runs, str):
        return {**found, "runs_unknown": runs}
    return {
        **found,
        "schedule": runs.schedule,
        "worker": runs.worker,
        "next_runs": [asdict(one) for one in runs.next_runs],
        "runs": [asdict(one) for one in runs.runs],
    }


def _labelled(label: str, *pieces: tables.Piece) -> Text:
    return tables.line(f"{label:<{_LABEL}} ", *pieces)


def _live(live: LiveVersion) -> Iterator[Text]:
    if live.version is None:
        yield _labelled("live", Styled("nothing", "yellow"), f" of {live.model}")
    else:
        yield _labelled("live", Styled(f"{live.model} v{live.version}", "bold"))
        by = f" by {live.by}" if live.by else ""
        yield _labelled("since", f"{_local(live.since)}{by}")
        if live.reason:
            yield _labelled("reason", live.reason)
    if live.challenger is not None:
        why = f": not live: {live.challenger_reason}" if live.challenger_reason else ""
        yield _labelled("challenger", f"v{live.challenger}{why}")


def _problems(live: LiveVersion, runs: Overview | str) -> Iterator[Text]:
    if not live.problems:
        said = "nothing is live" if live.version is None else "it can be served"
        yield _labelled("healthy", Styled("yes", "green"), f": {said}")
    for one in live.problems:
        yield _labelled("healthy", Styled("NO", "bold red"), f": {one.what}: {one.said}")
        if one.way_on:
            yield _labelled("", f"→ {one.way_on}")
    if isinstance(runs, str):
        yield _labelled("runs", Styled("unknown", "bold red"), f": {runs}")


def _schedule(runs: Overview) -> Iterator[Text]:
    if runs.schedule:
        yield _labelled("next run", Styled(runs.schedule, "yellow"))
    for one in runs.next_runs:
        due = _local(one.due.isoformat()) if one.due else "none"
        yield _labelled("next run", f"{due}  {one.deployment}  ({one.note})")


def _runs(runs: Overview) -> Any:
    rows = [
        (
            _local(one.began.isoformat()),
            one.deployment or "by hand",
            Styled(one.outcome, _STYLE.get(one.outcome, "")),
            "" if one.seconds is None else f"{one.seconds:.0f} s",
            one.came_of,
        )
        for one in runs.runs
    ]
    columns = ("last runs", "of", "outcome", "took", "what came of it")
    return tables.table(columns, rows, right=("took",), whole=("last runs", "outcome"))


_STYLE = {
    "completed": "green",
    "nothing new": "green",
    "running": "cyan",
    "failed": "bold red",
    "crashed": "bold red",
    "lost": "bold red",
}


def _local(time: str | None) -> str:
    """Return a time of ISO 8601 in the zone of this machine; what is none, as it stands."""
    if time is None:
        return "unknown"
    try:
        return f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M %Z}"
    except (ValueError, OverflowError):
        return time

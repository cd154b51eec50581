"""`prong monitor`: a look, and what comes of it: report, alert, and a training on new labels.

The order lets nothing be lost: report and alert before the state is kept, so that a look that was
killed is made again; the training last, since it may take long, and a later look asks for it again
while the requests still drift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.core.config import AlertsConfig
from pipelines.core.errors import Failed, UserError
from pipelines.core.paths import Layout
from pipelines.monitoring import look_state as states
from pipelines.monitoring.look import Look, Settings, VersionLook, Versions, look
from pipelines.monitoring.look_report import write_report
from pipelines.scheduling import alerts
from pipelines.systems.locks import locked

LARGEST_RATE = 0.5
LARGEST_MINIMUM = 10_000
Retrain = Callable[[], str]
"""Starts a training if labelled data has changed; returns what came of it, in one line."""


@dataclass(frozen=True)
class Caller:
    """For whom a look is made, as an alert names it.

    Attributes:
        deployment: Its name, or `by-hand`.
        flow_run: Prefect's id of the run; empty by hand.
        scheduled: The time it was made for, ISO 8601; empty by hand.
    """

    deployment: str = "by-hand"
    flow_run: str = ""
    scheduled: str = ""


@dataclass(frozen=True)
class Monitored:
    """A look and its reports.

    Attributes:
        look: What came of it.
        page: The report, HTML.
        data: The same as JSON.
        alerted: Whether a receiver took an alert.
    """

    look: Look
    page: Path
    data: Path
    alerted: bool


def checked(settings: Settings) -> Settings:
    """Return settings that are in range.

    Raises:
        UserError: If one is not.
    """
    if not 0 < settings.rate <= LARGEST_RATE:
        raise UserError(f"--rate {settings.rate}: allowed: above 0, at most {LARGEST_RATE}")
    if not 20 <= settings.minimum <= LARGEST_MINIMUM:
        raise UserError(f"--minimum {settings.minimum}: allowed: 20 to {LARGEST_MINIMUM}")
    return settings


def monitor(
    layout: Layout,
    config: AlertsConfig,
    model: str,
    settings: Settings,
    versions: Versions,
    *,
    caller: Caller | None = None,
    retrain: Retrain | None = None,
) -> Monitored:
    """Look at a model's request log, write the report, and act on it.

    Args:
        layout: The checkout.
        config: Where alerts go.
        model: The registered model's name.
        settings: How to decide.
        versions: Those that were released.
        caller: For whom.
        retrain: Is called if there is drift; None: nothing is trained.

    Raises:
        UserError: If another look is at work, its state is damaged, or a training fails for a
            reason that the user can mend.
        Failed: If a training crashed.
        Unavailable: If the registry does not answer; nothing is then kept of the look.
    """
    checked(settings)
    folder = states.folder(layout, model)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / "lock", patience=0):
            state = states.load(layout, model)
            seen = look(layout, model, settings, versions, state)
            page, data = write_report(layout, seen, state.looks)
            alerted = _alert(config, seen.look, caller or Caller())
            if settings.since is None:
                states.save(layout, model, state)
    except BlockingIOError:
        raise UserError(
            f"another look at the requests of {model} is at work; wait until it has ended"
        ) from None
    done = seen.look
    if done.drift:
        done, error = _retrained(done, retrain)
        write_report(layout, replace(seen, look=done), state.looks)
        if error is not None:
            raise error
    return Monitored(done, page, data, alerted)


def summary(done: Look) -> str:
    """Return what came of a look, in one line."""
    if not done.versions:
        return "no new requests"
    told = "; ".join(f"v{one.version}: {one.decision}" for one in done.versions[:3])
    more = f" and {len(done.versions) - 3} more versions" if len(done.versions) > 3 else ""
    return f"{told}{more}"


def _alert(config: AlertsConfig, done: Look, caller: Caller) -> bool:
    """Tell of drift, of the live version first; say whether it was taken."""
    if not done.drift:
        return False
    worst: VersionLook = next((one for one in done.drift if one.live), done.drift[0])
    alert = alerts.Alert(
        event="drift",
        deployment=caller.deployment,
        flow_run=caller.flow_run,
        scheduled=caller.scheduled or done.time,
        reason=worst.reason,
        model=done.model,
        version=worst.version,
    )
    return alerts.send(config, alert)


def _retrained(done: Look, retrain: Retrain | None) -> tuple[Look, UserError | Failed | None]:
    if retrain is None:
        return replace(done, retraining="not asked for"), None
    try:
        return replace(done, retraining=retrain()), None
    except (UserError, Failed) as error:
        return replace(done, retraining=f"failed: {error}"), error

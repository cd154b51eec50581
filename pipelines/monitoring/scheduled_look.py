"""The entry flow of a monitor's deployment: one scheduled look."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pipelines.core.config import Params
from pipelines.core.environment import open_checkout
from pipelines.core.errors import Failed, Unavailable
from pipelines.core.paths import Layout
from pipelines.monitoring.comparison import MINIMUM, RATE
from pipelines.monitoring.held_out import ReleasedVersions
from pipelines.monitoring.look import Settings
from pipelines.monitoring.monitor import Caller, Monitored, checked, monitor, summary
from pipelines.monitoring.retraining import retrain
from pipelines.scheduling import flow_runs, rules
from pipelines.scheduling.deployment import Deployed
from pipelines.scheduling.flow import Call, reporting, settle
from pipelines.scheduling.rules import Due
from pipelines.systems.prefect.decorators import MONITORED, flow, retried
from pipelines.systems.prefect.this_run import State, cancelled, completed, this_run

NAME = "monitor"
"""What a deployment is called unless told otherwise."""
DRIFT = "Drift"
"""Name of the state of a run that decided for drift."""
ENTRYPOINT = "pipelines.monitoring.scheduled_look.monitored"


def deployed(settings: Settings, *, retraining: bool) -> Deployed:
    """Return what a deployment of looks runs.

    Args:
        settings: How each look decides.
        retraining: Whether drift starts a training.
    """
    given = {"rate": settings.rate, "minimum": settings.minimum, "retraining": retraining}
    return Deployed(MONITORED, ENTRYPOINT, "Looks for drift in the request log.", given)


@flow(name=MONITORED)
def monitored(rate: float = RATE, minimum: int = MINIMUM, retraining: bool = True) -> State[Any]:
    """Look at the request log of the checkout's model, and say what came of it."""
    layout, params = open_checkout()
    settings = checked(Settings(rate=float(rate), minimum=int(minimum)))
    run = this_run()
    me = Due(run.run_id, run.scheduled, "running")
    call = Call(run.name or "by-hand", run.deployment, me)
    with reporting(params, call):
        skipped = settle(layout, params, call)
        if skipped:
            return cancelled(skipped, flow_runs.SKIPPED)
        done = _patiently(params, scheduled_look)(layout, params, call, settings, bool(retraining))
    said = summary(done.look)
    if done.look.drift:
        return completed(f"{said}; {done.look.retraining}", DRIFT)
    return completed(said)


def scheduled_look(
    layout: Layout, params: Params, call: Call, settings: Settings, retraining: bool
) -> Monitored:
    """Look once.

    Args:
        layout: The checkout.
        params: Its parameters.
        call: What this run was called for.
        settings: How to decide.
        retraining: Whether drift starts a training.

    Raises:
        UserError: If the log's state, the registry or a training is at fault.
        Failed: If a stage of a training crashed, or a system that it needs did not answer.
    """
    versions = ReleasedVersions(layout, params.model_name)

    def train() -> str:
        try:
            said = _patiently(params, retrain)(layout, params, call, versions.champions_data())
        except Unavailable as error:  # the look is done: made again it would find nothing new
            raise Failed(str(error)) from error
        return str(said)

    return monitor(
        layout,
        params.alerts,
        params.model_name,
        settings,
        versions,
        caller=Caller(call.name, call.me.run_id, call.me.scheduled.isoformat()),
        retrain=train if retraining else None,
    )


def _patiently(params: Params, function: Callable[..., Any]) -> Any:
    """Return a task that is run again, as the parameters say, after an error that may pass."""
    pauses = list(rules.pauses(params.schedule.retries, params.schedule.pause))
    return retried(function, pauses, rules.can_pass)


def by_hand(layout: Layout, params: Params, data_hash: str) -> str:
    """Train after a look that a person made; see `retrain`."""
    me = Due("", datetime.now(UTC), "running")
    return retrain(layout, params, Call(NAME, "", me), data_hash)

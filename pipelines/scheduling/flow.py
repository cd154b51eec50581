"""The entry flow of a deployment: one scheduled run, from first look to alert.

It asks in this order, and most runs end early: is a newer run due in my place? Is another at
work? Were these data trained with these parameters and this code? Only then is the main job run,
in a working tree of its own, so that a checkout at hand may be edited meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pipelines.core.config import Params
from pipelines.core.environment import open_checkout
from pipelines.core.errors import Failed, Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.pipeline.main_job import JobResult, came_of, check_data
from pipelines.pipeline.main_job import run as run_main_job
from pipelines.scheduling import alerts, rules
from pipelines.scheduling import flow_runs as runs
from pipelines.scheduling.rules import Due
from pipelines.systems.dvc import reproduce as versioning
from pipelines.systems.prefect.connection import api
from pipelines.systems.prefect.decorators import SCHEDULED, flow, retried
from pipelines.systems.prefect.this_run import State, cancelled, completed, this_run

SAME_DATA = "no labelled data has changed since the champion"
_PATIENCE = 45.0
"""Seconds to wait for the lease: longer than one lasts whose holder died where it is not seen."""


@dataclass(frozen=True)
class NothingNew:
    """These data were trained with these parameters and this code already.

    Attributes:
        version: What that training made.
    """

    version: int


@dataclass(frozen=True)
class Skipped:
    """Another run does, or did, what this one was for.

    Attributes:
        reason: Which, in one line.
    """

    reason: str


@dataclass(frozen=True)
class Call:
    """What this run was called for.

    Attributes:
        name: Of the deployment.
        deployment: Its id; empty if the flow was called by hand.
        me: This run.
    """

    name: str
    deployment: str
    me: Due


Outcome = JobResult | NothingNew | Skipped


@flow(name=SCHEDULED)
def scheduled() -> State[Any]:
    """Run the main job if there is something new, and say what came of it."""
    layout, params = open_checkout()
    run = this_run()
    me = Due(run.run_id, run.scheduled, "running")
    call = Call(run.name or "by-hand", run.deployment, me)
    with reporting(params, call):
        outcome: Outcome = _patient(params)(layout, params, call)
    if isinstance(outcome, Skipped):
        return cancelled(outcome.reason, runs.SKIPPED)
    if isinstance(outcome, NothingNew):
        said = f"nothing new: version {outcome.version} has these data, parameters and code"
        return completed(said, runs.NOTHING_NEW)
    announce(params, call, outcome)
    return completed(came_of(outcome))


def attempt(layout: Layout, params: Params, call: Call) -> Outcome:
    """Settle with the other runs, take the deployment's lease, and work if there is work.

    Args:
        layout: The checkout.
        params: Its parameters.
        call: What this run was called for.

    Raises:
        UserError: If a parameter, the data or an outside system is at fault.
        Failed: If a stage crashed.
    """
    skipped = settle(layout, params, call)
    if skipped:
        return Skipped(skipped)
    with only_one(layout, call.name) as mine:
        if not mine:
            return Skipped("another run of this deployment is running")
        return work(layout, params, call.name)


def settle(layout: Layout, params: Params, call: Call) -> str:
    """Close what is dead and settle with the other runs; return why to skip, or nothing."""
    from pipelines.systems import mlflow as tracking

    tracking.close_dead_runs(layout)
    if not call.deployment:
        return ""
    ours, me = UUID(call.deployment), call.me
    with api() as client:
        for closed in runs.close_dead(client, ours, but=me.run_id, begin_again=False):
            dead = Due(closed.run_id, closed.scheduled, "done")
            _tell(params, "failed", replace(call, me=dead), closed.reason)
        others = [runs.due(run) for run in runs.recent(client, ours)]
        turn = rules.turn_of(me, others, datetime.now(UTC))
        runs.skip(client, turn.overtaken, f"late: run {me.run_id} works in its place")
    return turn.skip


@contextmanager
def only_one(layout: Layout, name: str, patience: float = _PATIENCE) -> Iterator[bool]:
    """Hold the deployment's lease; yield False if a living run keeps it."""
    from pipelines.systems.mlflow.leases import leased

    deadline = time.monotonic() + patience
    while True:
        with leased(layout, f"scheduled-{name}", patience=0) as lease:
            if lease is not None or time.monotonic() > deadline:
                yield lease is not None
                return
        time.sleep(2.0)


def _patient(params: Params) -> Any:
    """Return the task of an attempt, made again as the parameters say."""
    pauses = list(rules.pauses(params.schedule.retries, params.schedule.pause))
    return retried(attempt, pauses, rules.can_pass)


def work(layout: Layout, params: Params, name: str, unlike: str = "") -> Outcome:
    """Run the main job in a working tree of its own, unless its training is known.

    Args:
        layout: The checkout; its commit and its parameters are what is run.
        params: Its parameters.
        name: The deployment.
        unlike: Hash of prepared data: with the same data nothing is run; empty: with any data.

    Raises:
        UserError: If a parameter, the data or an outside system is at fault.
        Failed: If a stage crashed.
    """
    from pipelines.data.prepared import load_card
    from pipelines.provenance import lineage
    from pipelines.registry.start_weights import bring
    from pipelines.systems import mlflow as tracking
    from pipelines.systems.worktrees import finish, worktree

    # The tree shares the checkout's stores, not its folder.
    os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = tracking.artifact_root(layout)
    os.environ["MLFLOW_TRACKING_URI"] = tracking.tracking_uri(layout)
    commit = lineage.commit(layout.root)
    if commit == lineage.UNKNOWN:
        raise UserError(
            f"{layout.root}: a scheduled run works on a commit, and there is none; make one: "
            "git add -A && git commit"
        )
    tree = worktree(layout, deployment=name, params=params, commit=commit)
    check_data(tree, params)
    versioning.ensure(tree.root, "prepare")
    if unlike and load_card(tree.prepared).data_hash == unlike:
        finish(tree)
        return Skipped(SAME_DATA)
    bring(tree, params)
    known = judged_version(tree, params)
    if known is not None:
        finish(tree)
        return NothingNew(known)
    result = run_main_job(tree, (), lambda _stage: None)
    finish(tree)
    return result


def judged_version(layout: Layout, params: Params) -> int | None:
    """Return the version that was made from the prepared data, parameters and code, and judged.

    One that was registered and not judged, because its run died in between, does not count.

    Args:
        layout: A checkout whose stage `prepare` is up to date, with what the training starts from.
        params: Its parameters.
    """
    from pipelines.core.fingerprints import training_hash
    from pipelines.data.prepared import load_card
    from pipelines.registry import versions as registry
    from pipelines.systems import mlflow as tracking
    from pipelines.training.start_files import lineage_text

    started = lineage_text(layout.root, params.train.checkpoint_from)
    wanted = training_hash(load_card(layout.prepared).data_hash, params, layout.root, started)
    client = tracking.connect(layout)
    with tracking.answering(layout):
        for version in registry.versions(client, params.model_name):
            judged = version.complete and version.under("gate.")
            if judged and version.under(registry.LINEAGE).get("training_hash") == wanted:
                return version.number
    return None


@contextmanager
def reporting(params: Params, call: Call) -> Iterator[None]:
    """Send an alert for what goes wrong, and let it pass on.

    Raises:
        UserError: What the block raises, as every other error of it.
    """
    try:
        yield
    except (UserError, Failed, Unavailable) as error:
        _tell(params, "failed", call, str(error))
        raise
    except Exception as error:
        _tell(params, "failed", call, f"{type(error).__name__}: {error}")
        raise


def announce(params: Params, call: Call, result: JobResult) -> None:
    """Send an alert for what came of the main job: a new champion, or one that was blocked."""
    decision = result.decision
    if decision.promoted:
        event: alerts.Event = "promoted"
    elif decision.champion != decision.version:
        event = "blocked"
    else:
        return  # champion already: an earlier attempt said so
    _tell(params, event, call, decision.reason, version=decision.version)


def _tell(
    params: Params, event: alerts.Event, call: Call, reason: str, version: int | None = None
) -> None:
    alert = alerts.Alert(
        event=event,
        deployment=call.name,
        flow_run=call.me.run_id,
        scheduled=call.me.scheduled.isoformat(),
        reason=reason,
        model=params.model_name,
        version=version,
    )
    alerts.send(params.alerts, alert)

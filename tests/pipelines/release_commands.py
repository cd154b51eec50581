"""What a registry is told in the tests, each in a process of its own; see `fork_server`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finished_checkout import PARAMS, list_few_packages
from judged_here import judged_here

from pipelines.core.paths import Layout
from pipelines.gates import judging
from pipelines.registry import versions as registry
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release import transaction
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import leases

_PARAMS = replace(PARAMS, gates=replace(PARAMS.gates, margin=0.9))
_MODEL = _PARAMS.model_name


def register(layout: Layout) -> Any:
    """Register the checkout's model."""
    return asdict(release.register(layout, _PARAMS, "a-flow-run"))


def promote(layout: Layout, version: int | None = None, asked: bool = False) -> Any:
    """Promote a version, or the challenger."""
    done = promotion.promote(layout, _PARAMS, version, "a-flow-run", asked=asked)
    return {"promoted": done.promoted, "champion": done.champion, "reason": done.reason}


def release_model(layout: Layout) -> Any:
    """Register the checkout's model and promote it."""
    done = register(layout)
    return {
        "created": done["created"],
        "version": done["version"],
        **promote(layout, done["version"]),
    }


def rollback(layout: Layout, to: str | None = None) -> Any:
    """Make an earlier version champion again."""
    return asdict(promotion.rollback(layout, _MODEL, to, "it was wrong"))


def history(layout: Layout) -> Any:
    """Repair the registry and return how many entries its history has."""
    return len(transaction.repaired_state(layout, _MODEL).history.entries)


def look(layout: Layout) -> Any:
    """Say how the registry stands, changing nothing."""
    client = tracking.connect(layout)
    state = transaction.read_state(layout, client, _MODEL)
    versions = registry.versions(client, _MODEL)
    return {
        "aliases": dict(state.aliases),
        "complete": sorted(v.number for v in versions if v.complete),
        "all": sorted(v.number for v in versions),
        "sha256": sorted(v.sha256 for v in versions if v.complete),
        "entries": [entry.as_json() for entry in state.history.entries],
        "damage": state.history.damage,
        "intent": state.intent is not None,
        "agrees": state.agrees,
    }


def hold(layout: Layout) -> Any:
    """Take the lease, stop, and once awake see whether it is still held."""
    tracking.connect(layout)
    with leases.leased(layout, f"registry {_MODEL}") as lease:
        assert lease is not None
        os.kill(os.getpid(), signal.SIGSTOP)
        lease.check()
        return lease.token


COMMANDS: Mapping[str, Callable[..., Any]] = {
    command.__name__: command
    for command in (register, promote, release_model, rollback, history, look, hold)
}


def run(root: Path, command: str, lasts: float | None, options: Mapping[str, Any]) -> Any:
    """Run a command in a checkout and return what it says.

    Args:
        root: The checkout.
        command: Its name.
        lasts: Seconds that a lease lasts, if not as long as everywhere.
        options: Arguments by name.
    """
    list_few_packages()
    judging.run_confined = judged_here  # type: ignore[assignment]
    if lasts is not None:
        leases.LASTS = lasts
    return COMMANDS[command](Layout(root), **options)

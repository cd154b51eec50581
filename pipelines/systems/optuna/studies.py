"""A study: proposals, what came of them, and which trials are not worth going on with.

It lies in a SQLite file, so that a killed search goes on. One process at a time works on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_json
from pipelines.systems.optuna.dimensions import Choice, Dimension, Range, Value

optuna.logging.set_verbosity(optuna.logging.ERROR)

_RANDOM = 8
"""Trials before proposals follow from what came of earlier ones."""
_UNJUDGED = 3
"""Complete trials before any is stopped early."""
_DEAD = "prong.dead"
_REASON = "prong.reason"


class Ended(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"
    DEAD = "dead"


_STATES = {
    TrialState.COMPLETE: Ended.COMPLETE,
    TrialState.PRUNED: Ended.STOPPED,
    TrialState.FAIL: Ended.FAILED,
}


@dataclass(frozen=True)
class Proposal:
    """Settings to try.

    Attributes:
        number: Of the trial, from 0.
        values: Setting → value.
    """

    number: int
    values: Mapping[str, Value]


@dataclass(frozen=True)
class PastTrial:
    """A trial that has ended.

    Attributes:
        number: Of the trial, from 0.
        values: Setting → value.
        ended: How.
        reason: Why it was stopped early or failed; empty for a complete one.
        notes: What was noted about it.
    """

    number: int
    values: Mapping[str, Value]
    ended: Ended
    reason: str
    notes: Mapping[str, Any]


class Study:
    """A study in its file.

    Args:
        path: The file; made if absent.
        name: Of the study.
        dimensions: Setting → what it may be.
        seed: Of the proposals: equal seeds and equal outcomes give equal proposals.
        parallel: Whether several trials run at a time; proposals then keep apart from each other.
        stop_early: Whether a trial that is worse than the median of the others is stopped.

    Raises:
        UserError: If the file is not a study.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        dimensions: Mapping[str, Dimension],
        *,
        seed: int,
        parallel: bool,
        stop_early: bool,
    ) -> None:
        self._dimensions, self._seed, self._parallel = dimensions, seed, parallel
        self._spread = {key: _distribution(one) for key, one in dimensions.items()}
        self._running: dict[int, optuna.Trial] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        pruner: BasePruner = NopPruner()
        if stop_early:
            pruner = MedianPruner(n_startup_trials=_UNJUDGED, n_warmup_steps=2)
        address = URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
        try:
            self._storage = RDBStorage(address)
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, pruner=pruner, load_if_exists=True
            )
        except (SQLAlchemyError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: cannot be used as a study: {said}") from None

    def close(self) -> None:
        """Close the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted about the study as a whole."""
        return dict(self._study.user_attrs)

    def note(self, key: str, value: str | float | bool) -> None:
        """Note something about the study as a whole."""
        self._study.set_user_attr(key, value)

    def settle_dead(self) -> list[int]:
        """Mark the trials whose process was killed; their settings are proposed again, first.

        Returns:
            Their numbers.
        """
        dead = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._storage.set_trial_user_attr(trial._trial_id, _DEAD, True)
            self._study.tell(trial.number, state=TrialState.FAIL)
            if set(trial.params) == set(self._spread):
                self._study.enqueue_trial(trial.params)
            dead.append(trial.number)
        return dead

    def propose_first(self, values: Mapping[str, Value]) -> None:
        """Let settings be proposed before any others."""
        self._study.enqueue_trial(dict(values))

    def ask(self) -> Proposal:
        """Return what to try next; it is running from now on."""
        # A sampler of its own for each trial: a search that goes on proposes what it would have.
        count = sum(trial.ended is not Ended.DEAD for trial in self.ended()) + len(self._running)
        drawn = int(sha256_json([self._seed, count])[:8], 16)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = TPESampler(
                seed=drawn, n_startup_trials=_RANDOM, constant_liar=self._parallel
            )
        trial = self._study.ask(self._spread)
        self._running[trial.number] = trial
        return Proposal(trial.number, self._used(trial.params))

    def note_trial(self, number: int, key: str, value: Any) -> None:
        """Note something about a running trial."""
        self._running[number].set_user_attr(key, value)

    def goes_on(self, number: int, value: float, step: int) -> bool:
        """Take an intermediate figure of a running trial; say whether it is worth going on.

        Args:
            number: Of the trial.
            value: Smaller is better.
            step: When it was measured, from 1; each step once.
        """
        trial = self._running[number]
        trial.report(value, step)
        return not trial.should_prune()

    def complete(self, number: int, value: float) -> None:
        """End a trial with its figure; smaller is better."""
        self._study.tell(self._running.pop(number), value)

    def stop(self, number: int, reason: str) -> None:
        """End a trial as one that is not worth going on with: worse than any complete one."""
        self._end(number, TrialState.PRUNED, reason)

    def fail(self, number: int, reason: str) -> None:
        """End a trial that says nothing about its settings."""
        self._end(number, TrialState.FAIL, reason)

    def _end(self, number: int, state: TrialState, reason: str) -> None:
        trial = self._running.pop(number)
        trial.set_user_attr(_REASON, reason)
        self._study.tell(trial, state=state)

    def ended(self) -> list[PastTrial]:
        """Return all trials that have ended, in order."""
        found = self._study.get_trials(deepcopy=False, states=tuple(_STATES))
        return [
            PastTrial(
                trial.number,
                self._used(trial.params),
                Ended.DEAD if trial.user_attrs.get(_DEAD) else _STATES[trial.state],
                str(trial.user_attrs.get(_REASON, "")),
                {k: v for k, v in trial.user_attrs.items() if k not in (_DEAD, _REASON)},
            )
            for trial in found
        ]

    def _used(self, values: Mapping[str, Any]) -> dict[str, Value]:
        kinds = self._dimensions
        return {
            key: kind.nearest(values[key]) if isinstance(kind, Range) else values[key]
            for key, kind in kinds.items()
            if key in values
        }


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)

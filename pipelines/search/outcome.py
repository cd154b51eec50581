"""What a search came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.search.space import Space
from pipelines.systems.optuna.dimensions import Value
from pipelines.systems.optuna.studies import Ended, PastTrial


@dataclass(frozen=True)
class Tried:
    """A trial that has ended.

    Attributes:
        number: Of the trial, from 1.
        values: Setting → value.
        ended: How.
        error: Best validation error, %; None if it was never scored.
        loss: Validation loss at that epoch.
        epoch: That epoch, from 1.
        epochs: How many were trained.
        reason: Why it was stopped early or failed.
        run_id: Its MLflow run; empty if none is known.
    """

    number: int
    values: Mapping[str, Value]
    ended: Ended
    error: float | None
    loss: float | None
    epoch: int
    epochs: int
    reason: str
    run_id: str

    @classmethod
    def of(cls, trial: PastTrial) -> Tried:
        """Return a trial as a study remembers it."""
        notes: Mapping[str, Any] = trial.notes
        return cls(
            number=trial.number + 1,
            values=trial.values,
            ended=trial.ended,
            error=notes.get("error"),
            loss=notes.get("loss"),
            epoch=int(notes.get("epoch", 0)),
            epochs=int(notes.get("epochs", 0)),
            reason=trial.reason,
            run_id=str(notes.get("run_id", "")),
        )


@dataclass(frozen=True)
class Searched:
    """A search.

    Attributes:
        name: Of the study.
        space: What was searched.
        trials: All that have ended, in order; those that were killed count as dead.
        epochs: Of a trial.
    """

    name: str
    space: Space
    trials: tuple[Tried, ...]
    epochs: int

    @property
    def counted(self) -> tuple[Tried, ...]:
        """The trials that count towards the total: all but the dead."""
        return counting(self.trials)

    @property
    def ranking(self) -> tuple[Tried, ...]:
        """The complete trials, the best first."""
        found = [one for one in self.trials if one.ended is Ended.COMPLETE]
        return tuple(sorted(found, key=rank))

    @property
    def best(self) -> Tried | None:
        """The best complete trial."""
        return next(iter(self.ranking), None)


def counting(trials: Iterable[Tried]) -> tuple[Tried, ...]:
    """Return the trials that count towards the total: all but the dead."""
    return tuple(one for one in trials if one.ended is not Ended.DEAD)


def rank(one: Tried) -> tuple[float, float, int]:
    """Return by what trials are ordered: error, then loss, then who was first."""
    assert one.error is not None
    assert one.loss is not None
    return one.error, one.loss, one.number

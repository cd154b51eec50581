"""One search for all methods: equal budgets, every trial kept, going on after a kill.

No trial is stopped early, so that equal numbers of trials are equal budgets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pipelines.core.files import sha256_json
from pipelines.paper.experiment import Curve, CurveMark, StudyPlan
from pipelines.paper.records import JudgedTrial, StudyResult
from pipelines.systems.optuna import studies
from pipelines.systems.optuna.dimensions import Value
from pipelines.systems.optuna.studies import Ended

Values = Mapping[str, Value]
Run = Callable[[Values, Path, Callable[[CurveMark], None]], Curve]
"""Makes a trial from its settings, the file of its checkpoint and what is told of each mark."""
SEED = 0
"""Of the proposals, and of the weights and the order of the images in every trial."""


class Trial(Protocol):
    """Records one trial elsewhere."""

    def mark(self, mark: CurveMark) -> None:
        """Take figures."""

    def end(self, reason: str) -> None:
        """End it; a reason says why it was not trained to its end."""


class TrialRecorder(Protocol):
    """Records trials elsewhere."""

    def begin(self, number: int, values: Values) -> Trial:
        """Return the record of a new trial."""


def search(
    study: StudyPlan,
    trials: int,
    folder: Path,
    identity: object,
    run: Run,
    score: Callable[[Curve], float],
    recorder: TrialRecorder,
    say: Callable[[str], None],
) -> StudyResult:
    """Make the trials of a study that are missing.

    Args:
        study: What is searched.
        trials: How many, those of an earlier call included. One whose process was killed does not
            count, and is made again.
        folder: Where studies are kept.
        identity: Of all that decides what comes of a trial, as plain values; other values are
            another study.
        run: Makes a trial.
        score: Of a trial; smaller is better.
        recorder: Is told of each trial.
        say: Is told of each line of progress.

    Returns:
        All trials, in order.
    """
    name = sha256_json([study.method, {k: str(v) for k, v in study.space.items()}, identity])[:16]
    with _opened(folder / f"{name}.db", name, study) as kept:
        kept.settle_dead()
        if not kept.ended():
            for values in study.first:
                kept.propose_first({k: v for k, v in values.items() if k in study.space})
        while len(_counted(kept)) < trials:
            proposal = kept.ask()
            values = {**study.fixed, **proposal.values}
            record = recorder.begin(proposal.number, values)
            checkpoint = folder / f"{name}-{sha256_json(values)[:16]}.safetensors"
            curve = run(values, checkpoint, record.mark)
            found = score(curve) if not curve.reason else math.inf
            reason = curve.reason or ("" if math.isfinite(found) else "its score is not finite")
            if reason:
                kept.stop(proposal.number, reason)
            else:
                kept.note_trial(proposal.number, "score", found)
                kept.complete(proposal.number, found)
            record.end(reason)
            done = len(_counted(kept))
            what = reason or f"{found:.4g}"
            shown = "  ".join(f"{k} {v}" for k, v in proposal.values.items())
            say(f"{done:>4}/{trials}  {what}  ({shown})")
        return StudyResult([_tried(one, study) for one in _counted(kept)[:trials]])


@contextmanager
def _opened(path: Path, name: str, study: StudyPlan) -> Iterator[studies.Study]:
    kept = studies.Study(path, name, study.space, seed=SEED, parallel=False, stop_early=False)
    try:
        yield kept
    finally:
        kept.close()


def _counted(kept: studies.Study) -> list[studies.PastTrial]:
    return [trial for trial in kept.ended() if trial.ended is not Ended.DEAD]


def _tried(trial: studies.PastTrial, study: StudyPlan) -> JudgedTrial:
    values = {**study.fixed, **trial.values}
    found = trial.notes.get("score") if trial.ended is Ended.COMPLETE else None
    return JudgedTrial(values, None if found is None else float(found), trial.reason)

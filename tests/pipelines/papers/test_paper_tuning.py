"""One search for all: equal budgets, every trial kept, going on after a kill."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import fork_server
import pytest

from pipelines.paper import tuning
from pipelines.paper.autoencoder_experiment import AUTOENCODERS
from pipelines.paper.experiment import Curve, CurveMark, StudyPlan
from pipelines.paper.fisher_experiment import FISHER
from pipelines.paper.records import JudgedTrial, StudyResult
from pipelines.systems.optuna.dimensions import Choice, Range, Value

STUDY = StudyPlan(
    "sgd",
    {"lr": Range(0.01, 1.0, log=True, whole=False), "normalised": Choice((False, True))},
    fixed={"batch": 64},
    first=({"lr": 0.5, "normalised": True}, {"lr": 0.25, "normalised": False}),
)


class TrialRecorder:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.begun: list[Mapping[str, Value]] = []
        self.ended: list[str] = []

    def begin(self, number: int, values: Mapping[str, Value]) -> TrialRecorder:
        self.begun.append(dict(values))
        return self

    def mark(self, mark: CurveMark) -> None:
        pass

    def end(self, reason: str) -> None:
        self.ended.append(reason)


def _curve(values: Mapping[str, Value], reason: str = "") -> Curve:
    loss = abs(math.log(float(values["lr"]) / 0.1))
    return Curve((CurveMark(0, 0, 0.0, 0.0, {"loss": loss}),), reason=reason)


def _search(
    folder: Path, trials: int, run: tuning.Run, identity: str = "one"
) -> tuple[StudyResult, TrialRecorder]:
    recorder = TrialRecorder()
    found = tuning.search(
        STUDY, trials, folder, identity, run, lambda curve: curve.last.figures["loss"], recorder,
        lambda line: None,
    )  # fmt: skip
    return found, recorder


def _plain(values: Mapping[str, Value], path: Path, say: Callable[[CurveMark], None]) -> Curve:
    return _curve(values)


def _killed_in_the_third_trial(folder: str) -> None:
    count = 0

    def run(values: Mapping[str, Value], path: Path, say: Callable[[CurveMark], None]) -> Curve:
        nonlocal count
        count += 1
        if count == 3:
            path.write_text("a checkpoint")
            os.kill(os.getpid(), signal.SIGKILL)
        return _curve(values)

    _search(Path(folder), 5, run)


@pytest.mark.slow
def test_a_killed_search_goes_on_and_keeps_every_trial(tmp_path: Path) -> None:
    killed = fork_server.start(
        _killed_in_the_third_trial, str(tmp_path / "kept"), leaves=tmp_path, cwd=tmp_path
    ).wait()
    assert killed.code == fork_server.KILLED, killed.output
    (checkpoint,) = (tmp_path / "kept").glob("*.safetensors")
    at: list[Path] = []

    def run(values: Mapping[str, Value], path: Path, say: Callable[[CurveMark], None]) -> Curve:
        at.append(path)
        return _curve(values)

    found, recorder = _search(tmp_path / "kept", 5, run)
    assert len(recorder.begun) == 3  # the one that was killed, and two more
    assert at[0] == checkpoint  # with the same settings, so that it goes on from there
    whole, _ = _search(tmp_path / "other", 5, _plain)
    assert [one.values for one in found.trials] == [one.values for one in whole.trials]
    again, nothing = _search(tmp_path / "kept", 5, run)
    assert again == found
    assert nothing.begun == []


def test_a_search_begins_with_its_first_settings_and_shares_what_is_fixed(tmp_path: Path) -> None:
    found, recorder = _search(tmp_path, 3, _plain)
    assert recorder.begun[:2] == [{"batch": 64, **first} for first in STUDY.first]
    assert all(one.values["batch"] == 64 for one in found.trials)


def test_a_trial_that_diverges_counts_and_is_never_best(tmp_path: Path) -> None:
    def run(values: Mapping[str, Value], path: Path, say: Callable[[CurveMark], None]) -> Curve:
        return _curve(values, "diverged: no" if values["normalised"] else "")

    found, recorder = _search(tmp_path, 4, run)
    assert len(found.trials) == 4
    assert "diverged: no" in recorder.ended
    assert found.best({"normalised": True}) is None
    best = found.best({})
    assert best is not None
    assert best.values["normalised"] is False


def test_other_circumstances_are_another_study(tmp_path: Path) -> None:
    _search(tmp_path, 2, _plain)
    _, recorder = _search(tmp_path, 2, _plain, identity="two")
    assert len(recorder.begun) == 2


def test_the_best_trial_has_what_is_asked_for() -> None:
    trials = [
        JudgedTrial({"bn": True}, 1.0),
        JudgedTrial({"bn": False}, 3.0),
        JudgedTrial({"bn": False}, 2.0),
    ]
    searched = StudyResult([*trials, JudgedTrial({"bn": False}, None, "diverged")])
    assert searched.best({"bn": False}) == trials[2]
    assert searched.best({}) == trials[0]


def test_budgets_are_equal_and_all_of_prong_has_one() -> None:
    for experiment in (FISHER, AUTOENCODERS):
        for scale in experiment.scales.values():
            studies = [study.method for study in scale.studies.values()]
            assert studies.count("prong") == 1
            points = [p for p in scale.points.values() if p.method == "prong" and p.study]
            assert {point.study for point in points} == {"prong"}
            # The number of trials belongs to the scale: no study can have another.
            assert scale.trials > 0

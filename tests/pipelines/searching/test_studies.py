"""A study in its file: the same proposals again, also after it was left in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.core.errors import UserError
from pipelines.systems.optuna.dimensions import Choice, Range, Value
from pipelines.systems.optuna.studies import Ended, Study

SPACE = {
    "lr": Range(1e-4, 0.1, log=True, whole=False),
    "period": Range(5, 50, log=False, whole=True),
    "method": Choice(("a", "b")),
}
TRIALS = 12  # more than are drawn at random


def _study(path: Path, seed: int = 0) -> Study:
    return Study(path, "study", SPACE, seed=seed, parallel=False, stop_early=True)


def _finish(study: Study, *, leave_after: int | None = None) -> list[dict[str, Value]]:
    """Run trials until there are enough, or die in the middle of one; return the proposals."""
    proposals = []
    while sum(trial.ended is not Ended.DEAD for trial in study.ended()) < TRIALS:
        proposal = study.ask()
        proposals.append(dict(proposal.values))
        rate = proposal.values["lr"]
        assert isinstance(rate, float)
        if len(proposals) == leave_after:
            break
        if study.goes_on(proposal.number, rate, 1) and study.goes_on(proposal.number, rate, 2):
            study.note_trial(proposal.number, "error", rate)
            study.complete(proposal.number, rate)
        else:
            study.stop(proposal.number, "worse")
    study.close()
    return proposals


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Value]]:
    """The proposals of a search that nothing disturbed."""
    return _finish(_study(tmp_path_factory.mktemp("whole") / "a b %41 é.db"))


def test_a_seed_decides_the_proposals_also_of_a_search_that_was_killed(
    tmp_path: Path, whole: list[dict[str, Value]]
) -> None:
    assert len(whole) == TRIALS
    killed = _finish(_study(tmp_path / "killed.db"), leave_after=9)
    again = _study(tmp_path / "killed.db")
    assert again.settle_dead() == [8]
    resumed = _finish(again)
    assert killed[:8] + resumed == whole  # the one that was killed is proposed again
    ended = _study(tmp_path / "killed.db").ended()
    assert [trial.number for trial in ended if trial.ended is Ended.DEAD] == [8]
    assert len(ended) == TRIALS + 1
    assert any(trial.ended is Ended.STOPPED and trial.reason == "worse" for trial in ended)


def test_proposals_go_where_the_figures_are_good(whole: list[dict[str, Value]]) -> None:
    found = [values["lr"] for values in whole]
    early, late = sorted(found[:8])[4], sorted(found[8:])[2]
    assert float(late) < float(early)


def test_what_is_proposed_first_comes_first_and_notes_stay(
    tmp_path: Path, whole: list[dict[str, Value]]
) -> None:
    study = _study(tmp_path / "study.db", seed=1)
    study.propose_first({"lr": 0.05, "period": 20, "method": "b"})
    assert study.ask().values == {"lr": 0.05, "period": 20, "method": "b"}
    assert dict(study.ask().values) not in whole  # of another seed
    study.note("run_id", "abc")
    study.close()
    assert _study(tmp_path / "study.db").notes == {"run_id": "abc"}


def test_a_file_that_is_no_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database, but long enough to be looked at" * 30)
    with pytest.raises(UserError, match=r"study\.db: cannot be used as a study"):
        _study(tmp_path / "study.db")

"""What a search came to: the order of its trials, and the picture."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipelines.search.outcome import Searched, Tried
from pipelines.search.picture import draw
from pipelines.search.trial import Scored
from pipelines.systems.optuna.dimensions import Choice, Range
from pipelines.systems.optuna.studies import Ended, PastTrial

SPACE = {
    "lr": Range(1e-4, 0.1, log=True, whole=False),
    "period": Range(5, 50, log=False, whole=True),
    "method": Choice(("sgd", "prong+")),
}


def _tried(number: int, error: float | None, loss: float, ended: Ended, lr: float) -> Tried:
    notes = {} if error is None else {"error": error, "loss": loss, "epoch": 2, "epochs": 3}
    values = {"lr": lr, "period": 7, "method": "sgd"}
    return Tried.of(PastTrial(number, values, ended, "", notes))


def _searched(*trials: Tried) -> Searched:
    return Searched("study", SPACE, trials, 3)


def test_errors_decide_and_losses_where_errors_are_equal() -> None:
    done = _searched(
        _tried(0, 5.0, 0.1, Ended.COMPLETE, 0.001),
        _tried(1, 4.0, 0.9, Ended.COMPLETE, 0.002),
        _tried(2, 4.0, 0.3, Ended.COMPLETE, 0.003),
        _tried(3, 1.0, 0.1, Ended.STOPPED, 0.004),
        _tried(4, None, 0.0, Ended.FAILED, 0.005),
        _tried(5, None, 0.0, Ended.DEAD, 0.006),
    )
    assert [one.number for one in done.ranking] == [3, 2, 1]
    assert done.best is done.trials[2]
    assert [one.number for one in done.counted] == [1, 2, 3, 4, 5]
    assert _searched().best is None


@given(
    st.integers(0, 100_000),
    st.integers(0, 100_000),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
)
def test_what_the_proposals_go_by_keeps_that_order(
    wrong: int, other: int, loss: float, more: float
) -> None:
    one = Scored(1, wrong / 1000, loss)  # of a hundred thousand images
    two = Scored(1, other / 1000, more)
    if wrong != other:
        assert (one.objective < two.objective) == (wrong < other)
    else:
        assert (one.objective <= two.objective) or loss > more


def test_the_picture_shows_every_setting_and_is_the_same_again(tmp_path: Path) -> None:
    done = _searched(
        _tried(0, 5.0, 0.1, Ended.COMPLETE, 0.001),
        _tried(1, 4.0, 0.9, Ended.COMPLETE, 0.02),
        _tried(2, 9.0, 0.1, Ended.STOPPED, 0.004),
        _tried(3, None, 0.0, Ended.FAILED, 0.005),
    )
    assert draw(done, tmp_path / "one.svg")
    assert draw(done, tmp_path / "two.svg")
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    for said in ("train.lr", "train.period", "train.method", "prong+", "best so far",
                 "stopped early", "0.001", "best 4.00 % (trial 2)"):  # fmt: skip
        assert said in text, said
    assert "mathdefault" not in text
    assert not draw(_searched(done.trials[3]), tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()

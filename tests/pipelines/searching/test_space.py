"""What may be searched, and what is said of anything else."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core import params_file
from pipelines.core.config import TrainConfig
from pipelines.core.errors import UserError
from pipelines.search.space import assignments, configured, parse, present
from pipelines.systems.optuna.dimensions import Choice, Range
from pipelines.training.methods import LEARNING_RATE

PARAMS = params_file.load(Path(__file__).parents[3] / "params.yaml")
RATES = {str(method): rate for method, rate in LEARNING_RATE.items()}


def _space(*asked: str, method: str = "prong+") -> dict[str, Range | Choice]:
    params = replace(PARAMS, train=replace(PARAMS.train, method=method))  # type: ignore[arg-type]
    return parse(asked, params, RATES)


def test_ranges_and_values_are_read_as_they_are_written() -> None:
    assert _space("train.lr=1e-3..0.3", "train.period=5..50", "train.momentum=0.5..0.9") == {
        "lr": Range(1e-3, 0.3, log=True, whole=False),
        "period": Range(5, 50, log=False, whole=True),  # ten times is not more than a decade
        "momentum": Range(0.5, 0.9, log=False, whole=False),
    }
    assert _space("train.method=sgd,prong+", "train.flip=true,false", "train.lr=auto,0.1") == {
        "method": Choice(("sgd", "prong+")),
        "flip": Choice((True, False)),
        "lr": Choice(("auto", 0.1)),
    }
    assert _space("train.step_limit=0..1")["step_limit"] == Range(0, 1, log=False, whole=False)


@pytest.mark.parametrize("method", LEARNING_RATE)
def test_the_range_of_the_rate_lies_around_the_default_of_the_method(method: str) -> None:
    found = _space("train.lr", method=method)["lr"]
    assert isinstance(found, Range)
    assert found.log
    assert 20 * found.low < RATES[method] < found.high / 5


def test_the_range_of_the_rate_covers_all_methods_that_are_searched() -> None:
    found = _space("train.lr", "train.method=adam,sgd")["lr"]
    assert isinstance(found, Range)
    assert found.low < RATES["adam"] < RATES["sgd"] < found.high


def test_every_default_range_holds_only_what_may_be_set() -> None:
    tried = 0
    for field in fields(TrainConfig):
        try:
            kind = _space(f"train.{field.name}")[field.name]
        except UserError:
            continue
        tried += 1
        values = kind.values if isinstance(kind, Choice) else (kind.low, kind.high)
        for value in values:
            assert getattr(configured(PARAMS.train, {field.name: value}, 1), field.name) == value
            written = asdict(PARAMS)
            written["train"][field.name] = value
            params_file.parse(written)
    assert tried > 15


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("train.dampin", "did you mean train.damping"),
        ("data.size", "only keys of the section train"),
        ("lr", "only keys of the section train"),
        ("train.seed", "best by chance"),
        ("train.epochs=1..5", "--epochs"),
        ("train.accumulate", "give one, such as train.accumulate=1..4"),
        ("train.lr=0.3..0.1", "must be below"),
        ("train.lr=1..x", "'x' is none of the numbers"),
        ("train.lr=-1..1", "train.lr = -1"),
        ("train.lr=nan..1", "train.lr"),
        ("train.lr=0.1", "a range LOW..HIGH, or two or more"),
        ("train.lr=0.1,0.1", "two or more different"),
        ("train.period=1.5..20", "'1.5' is none of the whole numbers"),
        ("train.period=0..20", "train.period = 0"),
        ("train.method=sgd,adm", "'adm'"),
        ("train.method=sgd..adam", "has no order"),
        ("train.flip=false..true", "has no order"),
        ("train.network=cnn,lenet", "'lenet' is no network"),
        ("train.batch=", "train.batch = ''"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(asked: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        _space(asked)
    assert said in str(raised.value)
    assert asked.partition("=")[0].removeprefix("train.") in str(raised.value)


def test_nothing_is_searched_twice_or_in_vain() -> None:
    with pytest.raises(UserError, match="given twice"):
        _space("train.lr", "train.lr=0.1..0.2")
    with pytest.raises(UserError, match=r"train\.damping: has no influence"):
        _space("train.damping", method="sgd")
    assert _space("train.damping", "train.method=sgd,prong", method="sgd")
    with pytest.raises(UserError, match=r"train\.lr, "):
        _space()


@given(low=st.floats(1e-6, 0.5), ratio=st.floats(1.01, 1e4), at=st.floats(0, 1))
def test_what_is_used_lies_in_the_range_and_is_short(low: float, ratio: float, at: float) -> None:
    kind = Range(low, min(low * ratio, 0.9), log=True, whole=False)
    if not kind.low < kind.high:
        return
    drawn = math.exp(math.log(kind.low) + at * math.log(kind.high / kind.low))
    used = kind.nearest(drawn)
    assert kind.holds(used)
    assert math.isclose(used, drawn, rel_tol=1e-3) or used in (kind.low, kind.high)
    assert kind.nearest(used) == used


@given(st.floats(1e-5, 0.9), st.integers(1, 100), st.booleans())
def test_what_is_offered_is_what_was_tried(momentum: float, period: int, flip: bool) -> None:
    values = {"momentum": Range(0, 0.99, False, False).nearest(momentum), "period": period}
    settings = configured(PARAMS.train, {**values, "flip": flip}, 3)
    written = asdict(PARAMS)
    for line in assignments({**values, "flip": flip}):
        key, _, text = line.partition("=")
        written["train"][key.partition(".")[2]] = params_file._yaml().load(text)
    written["train"]["epochs"] = 3
    assert params_file.parse(written).train == settings


def test_the_present_settings_are_a_proposal_where_they_lie_inside() -> None:
    space = _space("train.lr", "train.period=5..50")
    assert present(PARAMS.train, space, 0.05) == {"lr": 0.05, "period": 20}
    assert present(PARAMS.train, _space("train.period=30..50"), 0.05) is None
    choice = _space("train.lr=auto,0.1")
    assert present(PARAMS.train, choice, 0.05) == {"lr": "auto"}

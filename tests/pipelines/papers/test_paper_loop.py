"""The one training loop: every method, equal by seed, going on from its checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from pipelines.paper import compared_methods as methods
from pipelines.paper import one_training as loop
from pipelines.paper.compared_methods import METHODS, attach
from pipelines.paper.experiment import Curve, CurveMark


def _figures(curve: Curve) -> list[tuple[int, dict[str, float]]]:
    return [(mark.update, dict(mark.figures)) for mark in curve.marks]


_DEAR = ("soap", "shampoo", "kl-soap", "newton-muon")
"""Their packages take longest to import, and their updates to make."""


def _slow_if_dear(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in _DEAR)) for name in names]


@pytest.mark.parametrize("name", _slow_if_dear(METHODS))
def test_every_method_trains_or_says_that_it_is_not_available(name: str) -> None:
    method = METHODS[name]
    if method.missing:
        assert method.missing.startswith("not available: ")
        return
    # heavyball warns that a schedule is experimental; the schedule of trials is constant then.
    task = tiny.task(name, normalised=True)
    if name == "kl-soap":
        pytest.importorskip("heavyball")
        task = replace(task, values={**task.values, "schedule": "constant", "warmup": 0.0})
    curve = loop.train(tiny.problem(normalised=True), task)
    assert curve.reason == ""
    assert [mark.update for mark in curve.marks] == [0, 8, 16, 24]
    assert curve.last.examples == 24 * 8
    assert curve.last.figures["train"] < curve.marks[0].figures["train"]
    assert curve.last.seconds > 0
    assert (curve.refresh > 0) == bool(method.whitened and curve.before)


def test_what_is_missing_is_named_with_what_to_install() -> None:
    absent = replace(METHODS["soap"], module="no_such_module_at_all")
    assert absent.missing == "not available: install pytorch-optimizer"
    assert "not available" in METHODS["k-fac"].missing


def test_every_space_holds_what_its_search_begins_with() -> None:
    for method in METHODS.values():
        for normalised in (False, True):
            first = method.begin(normalised)
            assert set(first) == set(method.space)
            assert all(method.space[key].holds(value) for key, value in first.items())


def test_equal_seeds_give_equal_curves_and_others_do_not() -> None:
    first, again, other = (
        loop.train(tiny.problem(), tiny.task("adamw", seed=seed)) for seed in (1, 1, 2)
    )
    assert _figures(first) == _figures(again)
    assert _figures(first) != _figures(other)


@pytest.mark.parametrize("name", _slow_if_dear(("prong", "soap", "newton-muon", "schedule-free")))
def test_a_killed_training_goes_on_from_its_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if METHODS[name].missing:
        pytest.skip(METHODS[name].missing)
    whole = loop.train(tiny.problem(), tiny.task(name))
    monkeypatch.setattr(loop, "_CHECKPOINT", 0.0)
    kept = tmp_path / "state.safetensors"
    stepped: list[int] = []
    step = loop.Training._step

    def counted(self: loop.Training, *batch: torch.Tensor) -> bool:
        if len(stepped) == 13:
            stepped.append(0)
            raise KeyboardInterrupt
        stepped.append(self.update)
        return step(self, *batch)

    monkeypatch.setattr(loop.Training, "_step", counted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(tiny.problem(), tiny.task(name, checkpoint=kept))
    assert kept.is_file()
    resumed = loop.train(tiny.problem(), tiny.task(name, checkpoint=kept))
    assert stepped == [*range(13), 0, *range(13, 24)]
    assert _figures(resumed) == _figures(whole)
    assert not kept.exists()


def test_a_loss_that_is_not_finite_ends_a_training_with_its_reason() -> None:
    task = tiny.task("sgd")
    wild = replace(task, values={**task.values, "lr": math.inf, "warmup": 0.0})
    curve = loop.train(tiny.problem(), wild)
    assert curve.reason.startswith("diverged: ")
    assert curve.last.update < 24


def test_the_clip_bounds_the_gradient() -> None:
    task = tiny.task("sgd")
    plain = {**task.values, "schedule": "constant", "warmup": 0.0}
    moved = []
    for clip in (0.0, 1e-6):
        training = loop.Training(tiny.problem(), replace(task, values={**plain, "clip": clip}))
        before = [p.detach().clone() for p in training.attached.model.parameters()]
        pixels = tiny.images()[:8]
        training._rate(0.0)
        training._step(pixels, pixels)
        after = training.attached.model.parameters()
        moved.append(
            sum(float((a - b).detach().norm()) for a, b in zip(after, before, strict=True))
        )
    assert moved[1] < 1e-6 * 0.01 * 10 < moved[0]


def test_rates_rise_first_and_fall_to_zero() -> None:
    assert loop.factor("constant", 0.2, 0.1) == pytest.approx(0.5)
    assert loop.factor("constant", 0.0, 0.9) == 1
    assert loop.factor("linear", 0.0, 0.25) == pytest.approx(0.75)
    assert loop.factor("linear", 0.2, 0.6) == pytest.approx(0.5)
    assert loop.factor("cosine", 0.0, 0.5) == pytest.approx(0.5)
    assert loop.factor("cosine", 0.0, 1.0) == pytest.approx(0.0)
    assert loop.factor("linear", 0.2, 0.0) > 0


def test_measuring_and_observing_do_not_count_as_time() -> None:
    seen: list[CurveMark] = []

    def slow(model: torch.nn.Module) -> dict[str, float]:
        import time

        time.sleep(0.05)
        return {"slow": 1.0}

    problem = replace(tiny.problem(updates=3), observe=slow)
    loop.train(problem, tiny.task("sgd", say=seen.append))
    assert len(seen) == 4
    assert seen[-1].seconds < 0.05


def test_prong_takes_its_settings() -> None:
    network = tiny.problem().network()
    values = {"lr": 0.1, "period": 7, "damping": 0.5, "step_limit": 0.0, "momentum": "reset"}
    natural = attach(METHODS["prong"], network, values).natural
    assert natural is not None
    given = natural._given
    assert (given["period"], given["damping"], given["step_limit"]) == (7, 0.5, None)
    assert given["whitening"].momentum == "reset"
    assert math.isclose(natural.optimizers[0].param_groups[0]["lr"], 0.1)


def test_the_device_is_a_gpu_where_there_is_one() -> None:
    assert methods.device().type == ("cuda" if torch.cuda.is_available() else "cpu")

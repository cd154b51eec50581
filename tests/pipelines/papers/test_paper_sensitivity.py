"""Fig. 3a-b: which trainings there are, and what the report says of the paper's claims."""

from __future__ import annotations

from dataclasses import replace

import tiny

from pipelines.paper import one_training
from pipelines.paper.experiment import Curve, CurveMark, Results, Trained, TrainingTask
from pipelines.paper.sensitivity_experiment import DAMPINGS, SENSITIVITY, SMALL_RATES

SCALE = SENSITIVITY.scales["full"]


def test_every_damping_meets_every_rate_without_step_control() -> None:
    found = {
        (p.values["damping"], p.values["lr"], p.values["step_limit"])
        for key, p in SCALE.points.items()
        if key.startswith("damping-")
    }
    assert found == {(damping, rate, 0.0) for damping in DAMPINGS for rate in SMALL_RATES}


def test_periods_go_beyond_the_end_of_a_training() -> None:
    updates = SCALE.examples // 128
    periods = {p.values["period"] for k, p in SCALE.points.items() if k.startswith("period-")}
    assert max(map(int, periods)) == 100_000 > updates > 1000
    starts = {p.values["init"] for k, p in SCALE.points.items() if k.startswith("period-")}
    assert starts == {"whitened", "preserve"}


def test_an_infinite_period_never_reparametrises_again() -> None:
    key = next(k for k in SCALE.points if k.startswith("period-100000"))
    values = {**SCALE.points[key].values, "batch": 8}
    assert one_training.train(tiny.problem(), TrainingTask("prong", values, 0, True)).refresh == 0
    short = {**values, "period": 10}
    assert one_training.train(tiny.problem(), TrainingTask("prong", short, 0, True)).refresh > 0


def _results(ends: dict[str, float]) -> Results:
    def trained(key: str) -> Trained:
        end = ends.get(key, 10.0)
        figures = {"train": end, "test": end}
        curve = Curve((CurveMark(0, 0, 0.0, 0.0, figures), CurveMark(8, 64, 1.0, 1.0, figures)))
        point = SCALE.points[key]
        return Trained(key, point, point.values, {0: curve}, "diverged" if end > 90 else "")

    return Results(replace(SCALE, seeds=1), {k: trained(k) for k in SCALE.points}, {}, {})


def test_the_papers_claims_are_held_against_what_was_found() -> None:
    whitened = {f"period-{t}-whitened": 5.0 + t / 1e5 for t in (10, 100, 1000, 100_000)}
    held = {"damping-0-0": 3.0, "damping-2-0": 4.0, "damping-0-2": 99.0, "step-carried": 9.0}
    sheet = SENSITIVITY.report(_results({**whitened, **held}))
    assert [target.reached for target in sheet.targets] == [True] * 5
    assert [len(chart.lines) for chart in sheet.charts] == [8, 8, 8]
    assert ("ε 0.01, rate 0.03", "–", "–", "diverged") in sheet.tables[0].rows
    against = {**held, "damping-0-0": 5.0, "damping-0-2": 1.0, "step-carried": 11.0}
    sheet = SENSITIVITY.report(_results(against))
    assert [target.reached for target in sheet.targets] == [False] * 5

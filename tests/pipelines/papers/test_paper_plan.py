"""The stages of an experiment are what DVC holds, and depend on what they are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grimp
import pytest

from pipelines.core.errors import UserError
from pipelines.core.files import read_json
from pipelines.paper import plan
from pipelines.paper.experiments import EXPERIMENTS
from pipelines.paper.plan import AskedExperiment
from pipelines.systems.dvc.reproduce import open_repo

ROOT = Path(__file__).parents[3]
ASKED = AskedExperiment("autoencoder", "small", None, None, None, (), (), str(ROOT), "")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_plan_of_stages_is_what_dvc_holds(name: str, tmp_path: Path) -> None:
    steps = plan.lay_out(tmp_path / "work", replace(ASKED, name=name))
    with open_repo(tmp_path / "work") as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
    assert set(stages) == {step.stage for step in steps}
    made: set[str] = set()
    sources = {"code/training.json", "code/report.json", plan.SETTINGS}
    for step in steps:  # in this order, all that a stage needs is there
        stage = stages[step.stage]
        assert {str(dep.def_path) for dep in stage.deps} <= made | sources | {"data/card.json"}
        made |= {str(out.def_path) for out in stage.outs}
    assert not (tmp_path / "work/data/code").exists()


def test_every_training_depends_on_the_sources_that_it_is_made_of() -> None:
    graph = grimp.build_graph("prong", "pipelines", cache_dir=None)
    found = {"pipelines.paper.paper_stages"} | graph.find_upstream_modules(
        "pipelines.paper.paper_stages"
    )
    own = {name for name in found if name.startswith("pipelines.paper.")}
    # What only reports, and what the stages and the command share.
    others = ("experiments", "machine", "method_charts", "method_comparison", "plan", "sheet")
    reports = [path.stem for path in (ROOT / "pipelines/paper").glob("*_report.py")]
    without = {f"pipelines.paper.{name}" for name in (*others, *reports)}
    experiments = {f"pipelines.paper.{m}" for one in EXPERIMENTS.values() for m in one.sources}
    paths = {f"{name.replace('.', '/')}.py" for name in own - without - experiments}
    assert paths <= set(plan._TRAINING), paths - set(plan._TRAINING)
    for one in EXPERIMENTS.values():
        module = one.train.__module__
        needed = {module, one.score.__module__, one.network.__module__} & experiments
        assert needed <= {f"pipelines.paper.{name}" for name in one.sources}
    assert all((ROOT / source).exists() for source in plan._TRAINING)


def _parts(folder: Path) -> dict[str, Any]:
    found = read_json(folder / plan.SETTINGS)
    return {name: found[name] for name in ("data", "shared", "studies", "points")}


def test_another_seed_leaves_what_is_done_as_it_is(tmp_path: Path) -> None:
    plan.lay_out(tmp_path, ASKED)
    before = _parts(tmp_path)
    plan.lay_out(tmp_path, replace(ASKED, seeds=4, only=("prong", "sgd")))
    after = _parts(tmp_path)
    assert read_json(tmp_path / plan.SETTINGS)["seeds"] == 4
    for name, part in after.items():
        assert part.items() <= before[name].items()
    assert set(after["studies"]) == {"prong", "sgd"}
    assert plan.asked_in(tmp_path).only == ("prong", "sgd")


def test_rows_that_are_left_out_take_their_search_with_them_if_nobody_else_needs_it() -> None:
    _, whole = ASKED.experiment()
    _, part = replace(ASKED, without=("sgd", "muon")).experiment()
    assert set(whole.points) - set(part.points) == {"sgd", "muon"}
    assert set(whole.studies) - set(part.studies) == {"muon"}  # BN + SGD needs that of SGD
    assert all(part.points[key] == whole.points[key] for key in part.points)


def test_other_lengths_are_other_trainings(tmp_path: Path) -> None:
    plan.lay_out(tmp_path, ASKED)
    before = _parts(tmp_path)
    plan.lay_out(tmp_path, replace(ASKED, examples=2560))
    after = _parts(tmp_path)
    assert after.pop("shared") == {**before.pop("shared"), "examples": 2560}
    assert after == before


def test_what_is_unchanged_is_not_written_again(tmp_path: Path) -> None:
    plan.lay_out(tmp_path, ASKED)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    plan.lay_out(tmp_path, ASKED)
    assert before == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "nothing"}, "NAME 'nothing'"),
        ({"scale": "huge"}, "--scale 'huge': allowed: small, full"),
        ({"only": ("magic",)}, "--only 'magic': allowed: adamw, k-fac"),
        ({"without": ("magic",)}, "--without 'magic': allowed: adamw, bn-adamw"),
        ({"only": ("muon",), "without": ("muon",)}, "--without 'muon': nothing is left to train"),
    ],
)
def test_a_wrong_name_says_what_is_allowed(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(ASKED, **change).experiment()
    assert said in str(caught.value)


def test_another_folder_is_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of an experiment"):
        plan.asked_in(tmp_path)

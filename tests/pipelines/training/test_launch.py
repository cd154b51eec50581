"""The stage `train`: when an earlier attempt is continued, and its MLflow run with it."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch
from safetensors.torch import load_file
from small_checkout import Checkout, make

from pipelines.core import params_file
from pipelines.core.config import TrainConfig
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.systems import mlflow as tracking
from pipelines.training import launch
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.launch import _goes_on
from pipelines.training.loop import Loop
from pipelines.training.parallel import TrainingRanks


def _saved(finished: bool) -> Checkpoint:
    return Checkpoint(Path("x"), 8, 1, {"finished": finished})


@pytest.mark.parametrize(
    ("saved", "ranks", "afresh", "counts"),
    [
        (None, 1, False, True),
        (_saved(False), 1, True, True),  # broken off: the same command goes on, forced or not
        (_saved(False), 2, False, True),
        (_saved(True), 1, False, True),  # killed between the end and DVC's record of it
        (_saved(True), 1, True, False),
        (_saved(True), 2, False, False),
    ],
)
def test_when_an_earlier_attempt_is_continued(
    saved: Checkpoint | None, ranks: int, afresh: bool, counts: bool
) -> None:
    before = {"ranks": 1, "device": "cpu"}
    assert _goes_on(saved, ranks, "cpu", before, afresh) == counts
    if saved and saved.meta["finished"]:
        assert not _goes_on(saved, ranks, "cuda", before, afresh)


def test_cuda_asked_for_and_absent_is_refused(small: TrainConfig) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UserError, match=r"train\.device = 'cuda'.*allowed: auto, cpu"):
        launch.device(replace(small, device="cuda"))
    assert launch.device(replace(small, device="auto")) == "cpu"


def test_a_batch_too_small_for_the_ranks_is_refused(small: TrainConfig) -> None:
    with pytest.raises(UserError, match=r"train\.batch = 4.*3 processes × train\.accumulate = 1"):
        launch.check_batch(replace(small, batch=4), 3)
    with pytest.raises(UserError, match=r"train\.accumulate = 2"):
        launch.check_batch(replace(small, batch=6, accumulate=2), 2)
    launch.check_batch(replace(small, batch=8, accumulate=2), 2)
    assert launch.processes(replace(small, processes="auto"), "cpu") == 1


def _runs(layout: Layout) -> list[Any]:
    client = tracking.connect(layout)
    ids = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(ids))


@pytest.fixture
def layout(tmp_path: Path, database: Path) -> Layout:
    """An empty checkout with a database of its own."""
    return _with_database(Layout(tmp_path), database)


def _with_database(layout: Layout, database: Path) -> Layout:
    layout.state.mkdir()
    shutil.copy(database, layout.state / "mlflow.db")
    return layout


def test_a_resumed_run_keeps_its_id_and_has_each_point_once(layout: Layout) -> None:

    def opened(resume: str | None) -> Any:
        return tracking.training_run(
            layout, experiment="e", params={"train.epochs": 3}, tags={}, resume=resume
        )

    with pytest.raises(KeyboardInterrupt), opened(None) as run:
        run.log({"loss": 2.0}, step=10)
        run.log({"loss": 1.5}, step=20)
        raise KeyboardInterrupt
    assert tracking.run_status(layout, run.run_id) == "KILLED"
    with opened(run.run_id) as again:
        assert tracking.run_status(layout, run.run_id) == "RUNNING"
        for step, loss in ((10, 2.0), (20, 1.5), (30, 1.0), (30, 1.0)):
            again.log({"loss": loss}, step=step)
    assert again.run_id == run.run_id
    assert tracking.run_status(layout, run.run_id) == "FINISHED"
    points = tracking.connect(layout).get_metric_history(run.run_id, "loss")
    assert sorted((p.step, p.value) for p in points) == [(10, 2.0), (20, 1.5), (30, 1.0)]


def test_a_run_that_is_gone_is_replaced(layout: Layout) -> None:
    arguments: dict[str, Any] = {"experiment": "e", "params": {}, "tags": {}}
    with tracking.training_run(layout, **arguments) as first:
        pass
    tracking.connect(layout).delete_run(first.run_id)
    for gone in (first.run_id, "0" * 32):
        with tracking.training_run(layout, **arguments, resume=gone) as run:
            run.log({"loss": 1.0}, step=1)
        assert run.run_id not in (first.run_id, gone)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, prepared: Path, database: Path) -> Checkout:
    """A small checkout in which `prepare` has run."""
    made = make(tmp_path_factory.mktemp("launch") / "job")
    _with_database(Layout(made.root), database)
    shutil.copytree(prepared, made.root / "data/prepared")
    return made


def _stage(name: str) -> int:
    from pipelines.pipeline import stages

    return stages.main([name])


def _train(checkout: Checkout, **more: str) -> dict[str, Any]:
    """Train as the stage does: it is forked, its ranks are not."""
    env = checkout.environment(**more)
    leaves = checkout.root.parent / "output"
    ended = fork_server.start(
        _stage, "train", leaves=leaves, cwd=checkout.root, env=env, exits=True
    ).wait()
    assert ended.code == 0, ended.output
    found: dict[str, Any] = json.loads((checkout.root / "reports/train.json").read_text())
    return found


@pytest.mark.slow
def test_two_ranks_train_the_network_of_one(checkout: Checkout) -> None:
    """PRONG without batch normalisation, whose statistics are each rank's own."""
    settings = ["train.method=prong", "train.processes=2", "train.period=4"]
    params_file.edit(checkout.root / "params.yaml", settings)
    assert _train(checkout)["processes"] == 2
    two = load_file(checkout.root / "models/trained/network.safetensors")
    config = params_file.load(checkout.root / "params.yaml").train
    ranks = TrainingRanks(0, 1, torch.device("cpu"))
    alone = Loop(config, checkout.root / "data/prepared", ranks, None)
    alone.run()
    one = alone.network.state_dict()
    assert one.keys() == two.keys()
    for name in one:
        pair = [two[name], one[name]]
        if f"{name.rpartition('.')[0]}.precision_damping" in one and name.endswith("_matrix"):
            pair = [held @ held.mT for held in pair]  # each direction may have either sign
        torch.testing.assert_close(*pair, rtol=2e-3, atol=2e-4, msg=name)
    with (checkout.root / "reports/conditioning.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows} >= {"0", "4", "8"}
    assert all(float(row["condition_after"]) < 1e6 for row in rows)


@pytest.mark.slow
def test_a_finished_training_is_reused_only_by_the_same_training(checkout: Checkout) -> None:
    layout = Layout(checkout.root)
    params_file.edit(checkout.root / "params.yaml", ["train.seed=4"])  # of no other test
    runs, trainings = len(_runs(layout)), len(list(layout.trainings.glob("*")))
    first = _train(checkout)
    weights = (layout.trained / "network.safetensors").read_bytes()
    (layout.trained / "network.safetensors").unlink()
    assert _train(checkout)["resumptions"] == 1
    assert (layout.trained / "network.safetensors").read_bytes() == weights
    assert len(_runs(layout)) == runs + 1
    assert _train(checkout, PRONG_AFRESH="1")["resumptions"] == 0
    assert len(_runs(layout)) == runs + 2
    params_file.edit(checkout.root / "params.yaml", ["train.seed=5"])
    assert _train(checkout)["train_loss"] != first["train_loss"]
    assert len(list(layout.trainings.iterdir())) == trainings + 2
    assert {run.info.status for run in _runs(layout)} == {"FINISHED"}

"""The folder of a training in progress: its name, its locks, and which others are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.core.config import TrainConfig
from pipelines.core.errors import UserError
from pipelines.training import training_folder as folder
from pipelines.training.training_folder import TrainingFolder

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys, pathlib, time
from pipelines.training.training_folder import TrainingFolder
place = TrainingFolder(pathlib.Path(sys.argv[1]))
if sys.argv[2] == "rank":
    lock = place.hold_as_rank()
    print("held", flush=True)
    time.sleep(60)
with place.held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_name_tells_trainings_apart_by_what_decides_their_result(train: TrainConfig) -> None:
    def name(config: TrainConfig, data: str = "a") -> str:
        return folder.name(config, data, ROOT)

    mine = name(train)
    assert name(replace(train, processes=2, device="cpu")) == mine
    for other in (replace(train, seed=1), replace(train, epochs=9), replace(train, accumulate=2)):
        assert name(other) != mine
    assert name(train, "b") != mine


@pytest.mark.parametrize("who", ["stage", "rank"])
def test_a_second_attempt_waits_and_a_killed_one_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setattr(folder, "PATIENCE", 0.5)
    place = TrainingFolder(tmp_path / "t")
    place.path.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place.path), who],
        cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process runs the same"), place.held():
            pass
        assert place.busy() == (who == "stage")
    finally:
        holder.kill()
        holder.communicate()
    with place.held():
        assert place.busy()
    assert not place.busy()


def test_the_trainings_used_last_are_kept(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "mine", "older", "old", "oldest", "busy")):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    with TrainingFolder(tmp_path / "busy").held():
        os.utime(tmp_path / "busy", (1, 1))
        folder.tidy(tmp_path, "mine")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["busy", "mine", "new", "old", "older"]


def test_what_an_attempt_left_can_be_forgotten(tmp_path: Path) -> None:
    place = TrainingFolder(tmp_path)
    with place.held():
        place.remember(run_id="1")
        place.checkpoints.mkdir()
        assert place.remembered() == {"run_id": "1"}
        place.forget()
        assert place.remembered() == {}
        assert not place.checkpoints.exists()

"""Prefect: an experiment from its images to its report, each stage by DVC as a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.paper.plan import PlannedStage
from pipelines.systems.dvc import reproduce
from pipelines.systems.dvc.reproduce import StageResult
from pipelines.systems.prefect.connection import answering, used_server
from pipelines.systems.prefect.decorators import PAPER, flow, task

Report = Callable[[StageResult], None]


@dataclass(frozen=True)
class Done:
    """What a run came to.

    Attributes:
        stages: In order.
        seconds: Wall-clock time.
    """

    stages: tuple[StageResult, ...]
    seconds: float


@task
def data(folder: Path, stage: str) -> StageResult:
    """Bring the images up to date."""
    return reproduce.ensure(folder, stage)


@task
def search(folder: Path, stage: str) -> StageResult:
    """Bring the trials of one study up to date."""
    return reproduce.ensure(folder, stage)


@task
def train(folder: Path, stage: str) -> StageResult:
    """Bring one training up to date."""
    return reproduce.ensure(folder, stage)


@task
def report(folder: Path, stage: str) -> StageResult:
    """Bring the report up to date."""
    return reproduce.ensure(folder, stage)


_TASKS = {"data": data, "search": search, "train": train, "report": report}


def came_of(done: Done) -> str:
    """Return what a run came to, in one line."""
    ran = sum(stage.outcome == "ran" for stage in done.stages)
    return f"{ran} of {len(done.stages)} stages ran"


@flow(name=PAPER, came_of=came_of)
def paper(folder: Path, steps: Sequence[PlannedStage], say: Report) -> Done:
    """Bring all stages of an experiment up to date, in order.

    Args:
        folder: Of the experiment.
        steps: Its stages.
        say: Called with each stage's result as it comes.
    """
    start = time.monotonic()
    results = []
    for step in steps:
        named = _TASKS[step.kind].with_options(task_run_name=step.stage)
        result: Any = named(folder, step.stage)
        say(result)
        results.append(result)
    return Done(tuple(results), time.monotonic() - start)


def run(folder: Path, steps: Sequence[PlannedStage], say: Report) -> Done:
    """Run the flow; it must be told where Prefect is.

    Raises:
        UserError: If the images, the disk or an outside system is at fault.
        Failed: If a stage crashed.
    """
    with answering(used_server()):
        done: Any = paper(folder, steps, say)
    assert isinstance(done, Done)
    return done
